"""The distribution of an image's latents, as encoded by an autoencoder."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentDistribution:
    """A diagonal normal distribution per image.

    Both tensors are (images, channels, h, w), or (channels, h, w) for a single image.
    """

    mean: Tensor
    log_variance: Tensor

    def scaled(self, factor: float) -> "LatentDistribution":
        """The distribution of `factor` times the latents."""
        return LatentDistribution(
            self.mean * factor, self.log_variance + 2 * torch.log(torch.tensor(factor)).item()
        )

    def shifted(self, offset: float) -> "LatentDistribution":
        """The distribution of the latents plus `offset`."""
        return LatentDistribution(self.mean + offset, self.log_variance)

    def draw(self, noise: Tensor) -> Tensor:
        """A sample of the latents from standard normal `noise` of the same shape."""
        return self.mean + (0.5 * self.log_variance).exp() * noise
