"""What the denoiser is asked for: noise levels, targets and one loss per example, for every family.

A `time` is in [0, 1), 0 without noise; noisy = signal * latents + sigma * noise.
Discrete diffusion (Ho et al. 2020, arXiv:2006.11239): signal = sqrt(alpha_bar), sigma =
sqrt(1 - alpha_bar) at the noise level floor(time * levels).
Flow matching (Lipman et al. 2022, arXiv:2210.02747; Liu et al. 2022, arXiv:2209.03003):
signal = 1 - time, sigma = time.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from dreambooth_core.errors import ModelError

if TYPE_CHECKING:
    from dreambooth_core.config import Loss

Kind = Literal["epsilon", "v_prediction", "flow"]

LEAST_SNR = 1e-4
"""Signal-to-noise ratios below count as this: a schedule's noisy end would give endless weights."""


@dataclass(frozen=True)
class Objective:
    """A noise schedule and what is predicted on it."""

    kind: Kind
    levels: int
    """Noise levels that the denoiser knows; a flow's are the unit of its timesteps."""
    alpha_bar: Tensor | None = None
    """(levels,), float64 in [0, 1]: the cumulated signal variance; None for a flow."""

    def to(self, device: torch.device) -> "Objective":
        if self.alpha_bar is None:
            return self
        return replace(self, alpha_bar=self.alpha_bar.to(device))

    def timesteps_of(self, times: Tensor) -> Tensor:
        """What the denoiser is told, (batch,): a level's number, or for a flow levels * time."""
        if self.alpha_bar is None:
            return times * self.levels
        return (times.double() * self.levels).long().clamp(0, self.levels - 1)

    def signal_and_sigma(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of latents and of noise, float32, (batch,) each."""
        if self.alpha_bar is None:
            return 1 - times, times
        variance = self.alpha_bar[self.timesteps_of(times)]
        return variance.sqrt().float(), (1 - variance).sqrt().float()


def diffusion(kind: str, alpha_bar: Tensor) -> Objective:
    """Objective of a discrete schedule; `alpha_bar` is (levels,), the cumulated signal variance.

    Raises `ModelError` for a prediction that is not known here.
    """
    if kind not in get_args(Kind) or kind == "flow":
        known = ", ".join(name for name in get_args(Kind) if name != "flow")
        raise ModelError(
            f"the base predicts {kind!r}, which cannot be trained here; known: {known}"
        )
    return Objective(kind, alpha_bar.shape[0], alpha_bar.double())  # type: ignore[arg-type]


def flow(levels: int = 1000) -> Objective:
    """Objective of a straight flow from latents to noise, whose timesteps run to `levels`."""
    return Objective("flow", levels)


def draw_times(loss: "Loss", uniform: Tensor) -> Tensor:
    """Times in [0, 1) for uniform draws in [0, 1), (batch,), by the distribution of `loss`.

    `logit_normal` and `mode` as in Esser et al. 2024 (arXiv:2403.03206), section 3.1; `shift`, of
    section 5.3.2, comes after either: time * s / (1 + (s - 1) * time).
    """
    draws = uniform.double()
    if loss.timestep_sampling == "logit_normal":
        normal = math.sqrt(2) * torch.erfinv(2 * draws.clamp(1e-7, 1 - 1e-7) - 1)
        draws = torch.sigmoid(loss.logit_mean + loss.logit_std * normal)
    elif loss.timestep_sampling == "mode":
        draws = 1 - draws - loss.mode_scale * (torch.cos(math.pi / 2 * draws) ** 2 - 1 + draws)
    shift = loss.timestep_shift
    draws = shift * draws / (1 + (shift - 1) * draws)
    return draws.clamp(0, 1 - 1e-6).float()


def add_noise(objective: Objective, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Noisy latents, (batch, ...), for one time per example, (batch,)."""
    signal, sigma = (_per_example(level, latents) for level in objective.signal_and_sigma(times))
    return signal * latents + sigma * noise


def target(objective: Objective, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """What the denoiser should answer, (batch, ...).

    `epsilon`: the noise. `v_prediction`: signal * noise - sigma * latents (Salimans & Ho 2022,
    arXiv:2202.00512, appendix D). `flow`: noise - latents, the velocity.
    """
    if objective.kind == "epsilon":
        return noise
    if objective.kind == "flow":
        return noise - latents
    signal, sigma = (_per_example(level, latents) for level in objective.signal_and_sigma(times))
    return signal * noise - sigma * latents


def loss_weights(loss: "Loss", objective: Objective, times: Tensor) -> Tensor:
    """Weight of each example, (batch,), by its own noise level; all ones for a flow.

    `min_snr`: min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v (Hang et al. 2023,
    arXiv:2303.09556). `debiased`: 1 / sqrt(SNR) for epsilon (Yu et al. 2023, arXiv:2310.08442),
    sqrt(SNR) / (SNR + 1) for v, whose error is 1 / signal times that of the noise it implies.
    """
    if loss.weighting == "none" or objective.kind == "flow":
        return torch.ones_like(times)
    signal, sigma = objective.signal_and_sigma(times)
    snr = ((signal / sigma.clamp(min=1e-6)) ** 2).clamp(min=LEAST_SNR)
    of_v = objective.kind == "v_prediction"
    if loss.weighting == "min_snr":
        return snr.clamp(max=loss.min_snr_gamma) / (snr + 1 if of_v else snr)
    return snr.sqrt() / (snr + 1) if of_v else snr.rsqrt()


def example_losses(
    loss: "Loss",
    objective: Objective,
    prediction: Tensor,
    wanted: Tensor,
    times: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Loss of each example, (batch,), in float32: its weighted mean over channels and places.

    `mask` is (batch, 1, h, w) in [0, 1]; a place counts mask + unmasked_weight * (1 - mask).
    `huber` is the pseudo-Huber loss 2c (sqrt(error^2 + c^2) - c), whose c may follow the noise
    (Khrapov et al. 2024, arXiv:2403.16728).
    """
    errors = (prediction.float() - wanted.float()).square()
    if loss.kind == "huber":
        border = _per_example(_huber_border(loss, objective, times), errors)
        errors = 2 * border * ((errors + border**2).sqrt() - border)
    if mask is None:
        means = errors.flatten(1).mean(1)
    else:
        share = (mask + loss.unmasked_weight * (1 - mask)).float().expand_as(errors).flatten(1)
        means = (errors.flatten(1) * share).sum(1) / share.sum(1).clamp(min=1e-6)
    return means * loss_weights(loss, objective, times)


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


def _huber_border(loss: "Loss", objective: Objective, times: Tensor) -> Tensor:
    """Where the loss turns from square to straight, (batch,): less error counts square in noise."""
    border = torch.full_like(times, loss.huber_c)
    if loss.huber_schedule == "exponential":
        return border**times
    if loss.huber_schedule == "snr":
        signal, sigma = objective.signal_and_sigma(times)
        ratio = sigma / signal.clamp(min=1e-6)
        return (1 - border) / (1 + ratio) ** 2 + border
    return border


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.ndim - 1)).to(like.device)
