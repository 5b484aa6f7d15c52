"""Training objectives of all families: noise levels, targets and one loss per example.

A `time` is in [0, 1), 0 means no noise; noisy = signal * latents + sigma * noise.
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
"""Lower bound of signal-to-noise ratios in loss weights, which would be infinite at SNR 0."""


@dataclass(frozen=True)
class Objective:
    """A noise schedule and the kind of prediction."""

    kind: Kind
    levels: int
    """Number of noise levels; for a flow, the timestep of time 1."""
    alpha_bar: Tensor | None = None
    """(levels,), float64 in [0, 1]: the cumulative signal variance; None for a flow."""

    def to(self, device: torch.device) -> "Objective":
        if self.alpha_bar is None:
            return self
        return replace(self, alpha_bar=self.alpha_bar.to(device))

    def timesteps_of(self, times: Tensor) -> Tensor:
        """The denoiser's timestep input, (batch,): index of a level, or levels * time for a flow."""
        if self.alpha_bar is None:
            return times * self.levels
        return (times.double() * self.levels).long().clamp(0, self.levels - 1)

    def signal_and_sigma(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of latents and of noise, float32, (batch,) each."""
        if self.alpha_bar is None:
            return 1 - times, times
        variance = self.alpha_bar[self.timesteps_of(times)]
        return variance.sqrt().float(), (1 - variance).sqrt().float()


def diffusion(kind: str, alpha_bar: Tensor) -> Objective:
    """Objective of a discrete schedule; `alpha_bar` is (levels,), the cumulative signal variance.

    Raises `ModelError` for an unknown kind of prediction.
    """
    if kind not in get_args(Kind) or kind == "flow":
        known = " or ".join(name for name in get_args(Kind) if name != "flow")
        raise ModelError(
            f"the base predicts {kind!r}, which cannot be trained: use a base that predicts {known}"
        )
    return Objective(kind, alpha_bar.shape[0], alpha_bar.double())  # type: ignore[arg-type]


def flow(levels: int = 1000) -> Objective:
    """Objective of a straight flow from latents to noise, with timesteps in [0, levels)."""
    return Objective("flow", levels)


def draw_times(loss: "Loss", uniform: Tensor) -> Tensor:
    """Times in [0, 1) for uniform draws in [0, 1), (batch,), by the distribution of `loss`.

    `logit_normal` and `mode` implement Esser et al. 2024 (arXiv:2403.03206), section 3.1;
    `timestep_shift` s, section 5.3.2, is applied last: time * s / (1 + (s - 1) * time).
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
    """Target of the denoiser's prediction, (batch, ...).

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
    """Loss weight of each example, (batch,), by its noise level; 1 for a flow.

    `min_snr`: min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v (Hang et al. 2023,
    arXiv:2303.09556). `debiased`: 1 / sqrt(SNR) for epsilon (Yu et al. 2023, arXiv:2310.08442),
    sqrt(SNR) / (SNR + 1) for v, as an error e of v is an error signal * e of the noise.
    """
    if loss.weighting == "none" or objective.kind == "flow":
        return torch.ones_like(times)
    signal, sigma = objective.signal_and_sigma(times)
    snr = ((signal / sigma.clamp(min=1e-6)) ** 2).clamp(min=LEAST_SNR)
    is_v = objective.kind == "v_prediction"
    if loss.weighting == "min_snr":
        return snr.clamp(max=loss.min_snr_gamma) / (snr + 1 if is_v else snr)
    return snr.sqrt() / (snr + 1) if is_v else snr.rsqrt()


def example_losses(
    loss: "Loss",
    objective: Objective,
    prediction: Tensor,
    targets: Tensor,
    times: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Loss of each example, (batch,), float32: the weighted mean over channels and pixels.

    `mask` is (batch, 1, h, w) in [0, 1]; a pixel's weight is mask + unmasked_weight * (1 - mask).
    `huber` is the pseudo-Huber loss 2c (sqrt(error^2 + c^2) - c), with c scheduled over the noise
    level (Khrapov et al. 2024, arXiv:2403.16728).
    """
    errors = (prediction.float() - targets.float()).square()
    if loss.kind == "huber":
        c = _per_example(_huber_c(loss, objective, times), errors)
        errors = 2 * c * ((errors + c**2).sqrt() - c)
    if mask is None:
        means = errors.flatten(1).mean(1)
    else:
        weights = (mask + loss.unmasked_weight * (1 - mask)).float().expand_as(errors).flatten(1)
        means = (errors.flatten(1) * weights).sum(1) / weights.sum(1).clamp(min=1e-6)
    return means * loss_weights(loss, objective, times)


def prior_preservation(
    losses: Tensor, is_class: Tensor, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """DreamBooth's loss: mean(instance) + weight * mean(class), for any order of the batch.

    Implements eq. 2 of Ruiz et al. 2022, arXiv:2208.12242. `losses` (batch,), `is_class` (batch,)
    bool. Returns total, instance and class loss; a kind without examples is 0. Masked sums instead
    of indexing, which would synchronise with the device.
    """
    of_class = is_class.to(losses.dtype)
    class_loss = (losses * of_class).sum() / of_class.sum().clamp(min=1)
    instance_loss = (losses * (1 - of_class)).sum() / (1 - of_class).sum().clamp(min=1)
    return instance_loss + weight * class_loss, instance_loss, class_loss


def _huber_c(loss: "Loss", objective: Objective, times: Tensor) -> Tensor:
    """Error at which the loss turns from quadratic to linear, (batch,); smaller with more noise."""
    c = torch.full_like(times, loss.huber_c)
    if loss.huber_schedule == "exponential":
        return c**times
    if loss.huber_schedule == "snr":
        signal, sigma = objective.signal_and_sigma(times)
        ratio = sigma / signal.clamp(min=1e-6)
        return (1 - c) / (1 + ratio) ** 2 + c
    return c


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.ndim - 1)).to(like.device)
