"""What the denoiser is asked for: noise, targets and one loss per example, for every family.

Discrete-time diffusion (Ho et al. 2020, arXiv:2006.11239):
noisy = signal * latents + sigma * noise, signal = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dreambooth_core.errors import ModelError

Kind = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class Objective:
    """A noise schedule and what is predicted on it."""

    kind: Kind
    signal: Tensor
    """(timesteps,), float32 in [0, 1]."""
    sigma: Tensor
    """(timesteps,), float32 in [0, 1]; signal**2 + sigma**2 == 1."""

    @property
    def timesteps(self) -> int:
        """Number of noise levels; a timestep is in [0, timesteps)."""
        return self.signal.shape[0]

    def to(self, device: torch.device) -> "Objective":
        return Objective(self.kind, self.signal.to(device), self.sigma.to(device))


def diffusion(kind: str, alpha_bar: Tensor) -> Objective:
    """Objective of a discrete schedule; `alpha_bar` is (timesteps,), the cumulated signal variance.

    Raises `ModelError` for a prediction that is not known here.
    """
    if kind not in get_args(Kind):
        known = ", ".join(get_args(Kind))
        raise ModelError(
            f"the base predicts {kind!r}, which cannot be trained here; known: {known}"
        )
    alpha_bar = alpha_bar.double()
    signal, sigma = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
    return Objective(kind, signal, sigma)  # type: ignore[arg-type]  # checked above


def add_noise(objective: Objective, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Noisy latents, (batch, ...), for one timestep per example, (batch,)."""
    signal, sigma = _levels(objective, timesteps, latents.ndim)
    return signal * latents + sigma * noise


def target(objective: Objective, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the denoiser should answer, (batch, ...).

    `epsilon`: the noise. `v_prediction`: signal * noise - sigma * latents (Salimans & Ho 2022,
    arXiv:2202.00512, appendix D).
    """
    if objective.kind == "epsilon":
        return noise
    signal, sigma = _levels(objective, timesteps, latents.ndim)
    return signal * noise - sigma * latents


def example_losses(prediction: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of each example, (batch,), in float32."""
    return (prediction.float() - wanted.float()).square().flatten(1).mean(1)


def prior_preservation(
    losses: Tensor, is_class: Tensor, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """DreamBooth's loss (Ruiz et al. 2022, arXiv:2208.12242, equation 2), whatever the batch order.

    `losses` (batch,), `is_class` (batch,) bool. Returns total, instance and class loss; a kind
    without examples counts 0. Sums under a mask, not indexing: no wait for the device.
    """
    chosen = is_class.to(losses.dtype)
    class_loss = (losses * chosen).sum() / chosen.sum().clamp(min=1)
    instance_loss = (losses * (1 - chosen)).sum() / (1 - chosen).sum().clamp(min=1)
    return instance_loss + weight * class_loss, instance_loss, class_loss


def _levels(objective: Objective, timesteps: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    shape: Sequence[int] = (-1, *(1,) * (axes - 1))
    return objective.signal[timesteps].view(shape), objective.sigma[timesteps].view(shape)
