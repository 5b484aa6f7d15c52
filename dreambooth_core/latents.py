"""Images as the frozen autoencoder sees them: encoded once, drawn from again at every step."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

if TYPE_CHECKING:
    from dreambooth_core.families import Family, Parts


@dataclass(frozen=True)
class LatentDistribution:
    """A diagonal normal distribution per image; both tensors are (images, channels, h, w)."""

    mean: Tensor
    log_variance: Tensor

    def scaled(self, factor: float) -> "LatentDistribution":
        """The distribution of `factor` times the latents."""
        return LatentDistribution(
            self.mean * factor, self.log_variance + 2 * torch.log(torch.tensor(factor)).item()
        )

    def draw(self, index: Tensor, noise: Tensor) -> Tensor:
        """Latents of the images at `index` (batch,), for standard normal `noise` (batch, ...)."""
        return self.mean[index] + (0.5 * self.log_variance[index]).exp() * noise

    def to(self, device: torch.device) -> "LatentDistribution":
        return LatentDistribution(self.mean.to(device), self.log_variance.to(device))


def pixels(image: Pillow.Image, resolution: int) -> Tensor:
    """The middle square of an RGB image, (3, resolution, resolution), float32 in [-1, 1]."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert("RGB").resize(
        (resolution, resolution),
        Pillow.Resampling.LANCZOS,
        box=(left, top, left + side, top + side),
    )
    values = torch.from_numpy(np.array(square, dtype=np.float32))
    return (values / 127.5 - 1).permute(2, 0, 1).contiguous()


@torch.no_grad()
def encode(
    family: "Family",
    parts: "Parts",
    images: Iterable[Pillow.Image],
    resolution: int,
    mirrored: bool = False,
) -> LatentDistribution:
    """Distributions of all images, (images, channels, h, w), in float32 on the CPU.

    With `mirrored`, those of all mirror images follow: (2 * images, ...). One forward per image,
    so that an image's bits do not hang on its neighbours. Raises ValueError without any image.
    """
    device = next(parts[family.autoencoder].parameters()).device
    found = []
    for image in images:
        upright = pixels(image, resolution)
        views = [upright, upright.flip(-1)] if mirrored else [upright]
        found.append(family.encode_images(parts, torch.stack(views).to(device)))
    if not found:
        raise ValueError("no images to encode")
    means = torch.stack([item.mean.float().cpu() for item in found], dim=1)
    variances = torch.stack([item.log_variance.float().cpu() for item in found], dim=1)
    return LatentDistribution(means.flatten(0, 1), variances.flatten(0, 1))
