"""Losses against a scalar reference implementation of the papers, and against diffusers."""

import itertools
import math
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor

from dreambooth_core.config import Loss
from dreambooth_core.diffusion.objectives import (
    Objective,
    add_noise,
    diffusion,
    draw_times,
    example_losses,
    flow,
    loss_weights,
    prior_preservation,
    target,
)
from dreambooth_core.errors import ModelError

LEVELS = 1000
BETAS = [
    (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / (LEVELS - 1)) ** 2 for i in range(LEVELS)
]
"""Stable Diffusion's noise schedule."""
ALPHA_BARS = list(itertools.accumulate((1 - beta for beta in BETAS), lambda a, b: a * b))
ALPHA_BAR = torch.tensor(ALPHA_BARS, dtype=torch.float64)

OBJECTIVES = {
    "epsilon": diffusion("epsilon", ALPHA_BAR),
    "v_prediction": diffusion("v_prediction", ALPHA_BAR),
    "flow": flow(LEVELS),
}
WEIGHTINGS: tuple[dict[str, Any], ...] = (
    {"weighting": "none"},
    {"weighting": "min_snr", "min_snr_gamma": 3.0},
    {"weighting": "debiased"},
)
ERRORS: tuple[dict[str, Any], ...] = (
    {"kind": "mse"},
    *(
        {"kind": "huber", "huber_c": 0.2, "huber_schedule": schedule}
        for schedule in ("constant", "exponential", "snr")
    ),
)
TIMES: tuple[dict[str, Any], ...] = (
    {"timestep_sampling": "uniform", "timestep_shift": 3.0},
    {"timestep_sampling": "logit_normal", "logit_mean": 0.5, "logit_std": 0.8},
    {"timestep_sampling": "mode", "mode_scale": 1.29},
)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _uniform(count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


# The reference: scalar code with the module `math` only.


def _time(loss: Loss, u: float) -> float:
    if loss.timestep_sampling == "logit_normal":  # Esser et al. 2024, equation 19
        u = 1 / (1 + math.exp(-NormalDist(loss.logit_mean, loss.logit_std).inv_cdf(u)))
    elif loss.timestep_sampling == "mode":  # equation 20
        u = 1 - u - loss.mode_scale * (math.cos(math.pi * u / 2) ** 2 - 1 + u)
    s = loss.timestep_shift  # equation 23, for a ratio of s squared
    return s * u / (1 + (s - 1) * u)


def _alpha_and_sigma(kind: str, time: float) -> tuple[float, float]:
    if kind == "flow":
        return 1 - time, time
    alpha_bar = ALPHA_BARS[math.floor(time * LEVELS)]
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)


def _weight(loss: Loss, kind: str, time: float) -> float:
    """Weight of the prediction's squared error, by the error of the noise or of the latents."""
    if loss.weighting == "none" or kind == "flow":
        return 1.0
    alpha, sigma = _alpha_and_sigma(kind, time)
    # v = alpha * noise - sigma * latents: squared errors of noise and latents per squared error of v
    of_noise = 1.0 if kind == "epsilon" else alpha**2
    of_latents = sigma**2 / alpha**2 * of_noise
    snr = alpha**2 / sigma**2
    if loss.weighting == "min_snr":  # Hang et al. 2023, section 3.3: min(SNR, gamma) on the latents
        return min(snr, loss.min_snr_gamma) * of_latents
    return 1 / math.sqrt(snr) * of_noise  # Yu et al. 2023, equation 9: on the noise


def _error(loss: Loss, kind: str, time: float, difference: float) -> float:
    if loss.kind == "mse":
        return difference**2
    alpha, sigma = _alpha_and_sigma(kind, time)
    base = loss.huber_c
    c = {  # Khrapov et al. 2024, section 4
        "constant": base,
        "exponential": math.exp(time * math.log(base)),
        "snr": (1 - base) / (1 + sigma / alpha) ** 2 + base,
    }[loss.huber_schedule]
    return 2 * c * (math.sqrt(difference**2 + c**2) - c)


def _denoise(noisy: Any) -> Any:
    """A linear function instead of the denoiser."""
    return 0.7 * noisy + 0.1


def _example(
    loss: Loss, kind: str, time: float, latents: Tensor, noise: Tensor, mask: Tensor | None
) -> float:
    """Loss of one example (channels, h, w)."""
    alpha, sigma = _alpha_and_sigma(kind, time)
    total = shares = 0.0
    for channel, row, column in itertools.product(*map(range, latents.shape)):
        x, e = latents[channel, row, column].item(), noise[channel, row, column].item()
        wanted = {"epsilon": e, "v_prediction": alpha * e - sigma * x, "flow": e - x}[kind]
        share = 1.0
        if mask is not None:
            inside = mask[0, row, column].item()
            share = inside + loss.unmasked_weight * (1 - inside)
        total += share * _error(loss, kind, time, _denoise(alpha * x + sigma * e) - wanted)
        shares += share
    return _weight(loss, kind, time) * total / shares


def _ours(
    loss: Loss, objective: Objective, times: Tensor, images: tuple[Tensor, Tensor, Tensor | None]
) -> Tensor:
    latents, noise, mask = images
    prediction = _denoise(add_noise(objective, latents, noise, times))
    wanted = target(objective, latents, noise, times)
    return example_losses(loss, objective, prediction, wanted, times, mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda options: options["weighting"])
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_combination_equals_the_scalar_reference(
    kind: str, weighting: dict[str, Any], masked: bool
) -> None:
    latents, noise = _normal(2, 5, 2, 2, 3).unbind()
    mask = _uniform(5 * 6).view(5, 1, 2, 3).float() if masked else None
    is_class = torch.tensor([True, False, True, False, False])
    for errors, times in itertools.product(ERRORS, TIMES):
        of_mask = {"masks": True, "unmasked_weight": 0.3} if masked else {}
        loss = Loss.model_validate({**weighting, **errors, **times, **of_mask})
        drawn = _uniform(5)
        ours = _ours(loss, OBJECTIVES[kind], draw_times(loss, drawn), (latents, noise, mask))
        wanted = [
            _example(loss, kind, _time(loss, u), x, e, None if mask is None else mask[place])
            for place, (u, x, e) in enumerate(zip(drawn.tolist(), latents, noise, strict=True))
        ]
        torch.testing.assert_close(ours, torch.tensor(wanted), rtol=1e-4, atol=1e-6)

        both, _, _ = prior_preservation(ours, is_class, 0.7)
        of_class, of_instance = wanted[0] + wanted[2], wanted[1] + wanted[3] + wanted[4]
        assert both.item() == pytest.approx(of_instance / 3 + 0.7 * of_class / 2, rel=1e-4)
        alone, _, none = prior_preservation(ours[~is_class], is_class[~is_class], 0.7)
        assert alone.item() == pytest.approx(of_instance / 3, rel=1e-4)
        assert none == 0


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_order_of_a_batch_does_not_matter(kind: str) -> None:
    loss = Loss(
        kind="huber",
        weighting="min_snr",
        timestep_sampling="logit_normal",
        masks=True,
        unmasked_weight=0.3,
    )
    latents, noise = _normal(2, 6, 4, 3, 3).unbind()
    mask, times = _uniform(54).view(6, 1, 3, 3).float(), draw_times(loss, _uniform(6))
    is_class = torch.tensor([True, False, False, True, False, True])
    one = _ours(loss, OBJECTIVES[kind], times, (latents, noise, mask))
    for seed in range(5):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        images = (latents[order], noise[order], mask[order])
        other = _ours(loss, OBJECTIVES[kind], times[order], images)
        assert torch.equal(other, one[order])
        torch.testing.assert_close(
            prior_preservation(other, is_class[order], 0.5), prior_preservation(one, is_class, 0.5)
        )


def test_min_snr_weighs_a_class_example_by_its_own_noise() -> None:
    """One instance and one class image: weights of the whole batch times the losses of its half
    broadcast without an error, and each example is then weighted by the other's noise as well.
    """
    loss, objective = Loss(weighting="min_snr"), OBJECTIVES["epsilon"]
    times, is_class = torch.tensor([0.02, 0.9]), torch.tensor([False, True])
    prediction = torch.zeros(2, 4, 2, 2)
    wanted = torch.tensor([3.0, 0.5]).view(2, 1, 1, 1).expand_as(prediction)
    weights = [_weight(loss, "epsilon", time) for time in times.tolist()]
    assert weights[0] < 0.3 * weights[1]  # far apart, so that mixing them is visible

    losses = example_losses(loss, objective, prediction, wanted, times)
    total, instance, of_class = prior_preservation(losses, is_class, 0.5)
    assert instance.item() == pytest.approx(weights[0] * 3.0**2)
    assert of_class.item() == pytest.approx(weights[1] * 0.5**2)
    assert total.item() == pytest.approx(weights[0] * 3.0**2 + 0.5 * weights[1] * 0.5**2)

    halves = (prediction - wanted).square().mean((1, 2, 3)).chunk(2)
    mixed = (halves[0] * loss_weights(loss, objective, times)).mean() + 0.5 * halves[1].mean()
    assert mixed.shape == total.shape
    assert abs(mixed - total) > 1


# Distributions of times.


SHARES = [0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999]
EVEN = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.8, 0.5), (-1.0, 2.0)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_logit_normal_has_the_normals_quantiles(
    mean: float, deviation: float, shift: float
) -> None:
    loss = Loss(
        timestep_sampling="logit_normal", logit_mean=mean, logit_std=deviation, timestep_shift=shift
    )
    normal = NormalDist(mean + math.log(shift), deviation)  # a shift by s moves the logit by log(s)
    wanted = [1 / (1 + math.exp(-normal.inv_cdf(share))) for share in SHARES]
    found = draw_times(loss, torch.tensor(SHARES, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.81, 1.29, 1.75])
def test_mode_has_the_papers_quantiles(scale: float) -> None:
    """Times fall as the draws rise, so that the (1 - u)-quantile is f(u)."""
    times = draw_times(Loss(timestep_sampling="mode", mode_scale=scale), EVEN)
    assert (times.diff() <= 0).all()
    for u in (0.1, 0.25, 0.5, 0.9):
        quantile = 1 - u - scale * (math.cos(math.pi / 2 * u) ** 2 - 1 + u)
        assert (times < quantile).double().mean().item() == pytest.approx(1 - u, abs=1e-3)
    more_in_the_middle = ((times > 0.4) & (times < 0.6)).double().mean().item() - 0.2
    assert (more_in_the_middle > 0.01) == (scale > 0)
    assert (more_in_the_middle < -0.01) == (scale < 0)


def test_uniform_draws_are_unchanged_and_a_shift_moves_them_towards_noise() -> None:
    draws = _uniform(100)
    torch.testing.assert_close(draw_times(Loss(), draws), draws.float())
    assert draw_times(Loss(timestep_shift=3.0), torch.tensor([0.5])).item() == pytest.approx(0.75)
    assert (draw_times(Loss(timestep_shift=3.0), draws) > draws).all()
    assert (draw_times(Loss(timestep_shift=0.5), draws) < draws).all()


@pytest.mark.parametrize("options", [{}, *TIMES], ids=lambda options: options.get("times", "none"))
def test_draws_are_valid_times_and_levels(options: dict[str, Any]) -> None:
    edges = torch.tensor([0.0, 1e-12, 0.5, 1 - 2**-53], dtype=torch.float64)
    times = draw_times(Loss.model_validate(options), edges)
    assert times.dtype == torch.float32
    assert ((times >= 0) & (times < 1)).all()
    levels = OBJECTIVES["epsilon"].timesteps_of(times)
    assert ((levels >= 0) & (levels < LEVELS)).all()


def test_a_draw_does_not_depend_on_the_other_draws() -> None:
    for options in TIMES:
        loss, draws = Loss.model_validate(options), _uniform(33)
        alone = torch.cat([draw_times(loss, draw[None]) for draw in draws])
        torch.testing.assert_close(draw_times(loss, draws), alone, rtol=1e-6, atol=0)


# Objectives.


def test_timesteps() -> None:
    times = torch.tensor([0.0, 0.25, 0.9999])
    assert OBJECTIVES["epsilon"].timesteps_of(times).tolist() == [0, 250, 999]
    torch.testing.assert_close(flow().timesteps_of(times), torch.tensor([0.0, 250.0, 999.9]))


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda options: options["weighting"])
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_level_has_its_weight(kind: str, weighting: dict[str, Any]) -> None:
    loss = Loss.model_validate(weighting)
    times = (torch.arange(LEVELS) + 0.5) / LEVELS
    wanted = torch.tensor([_weight(loss, kind, time) for time in times.tolist()])
    found = loss_weights(loss, OBJECTIVES[kind], times)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_agrees_with_diffusers(kind: str) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        prediction_type=kind, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    objective = diffusion(kind, scheduler.alphas_cumprod)
    latents, noise = _normal(2, 3, 4, 5, 5).unbind()
    times = torch.tensor([0.0, 0.5, 0.9999])
    timesteps = objective.timesteps_of(times)
    noisy = add_noise(objective, latents, noise, times)
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, timesteps))
    wanted = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(target(objective, latents, noise, times), wanted)


def test_flow_goes_straight_from_latents_to_noise() -> None:
    latents, noise = _normal(2, 3, 4, 2, 2).unbind()
    times = torch.tensor([0.0, 0.3, 0.9])
    noisy = add_noise(flow(), latents, noise, times)
    torch.testing.assert_close(noisy[0], latents[0])
    velocity = target(flow(), latents, noise, times)
    torch.testing.assert_close(noisy - times.view(3, 1, 1, 1) * velocity, latents)


def test_a_schedule_that_ends_in_pure_noise_has_finite_losses() -> None:
    objective = diffusion("v_prediction", torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    times = torch.tensor([0.0, 0.5, 0.99])
    for options in (*WEIGHTINGS, *ERRORS):
        loss = Loss.model_validate(options)
        images = (*_normal(2, 3, 1, 2, 2).unbind(), None)
        assert _ours(loss, objective, times, images).isfinite().all()


def test_unknown_prediction_is_refused() -> None:
    for name in ("sample", "flow"):
        with pytest.raises(ModelError, match=name):
            diffusion(name, torch.ones(3))


def test_losses_are_float32_for_other_dtypes() -> None:
    latents, noise = _normal(2, 2, 4, 2, 2).unbind()
    times = torch.tensor([0.1, 0.7])
    half = example_losses(Loss(), flow(), latents.bfloat16(), noise.bfloat16(), times)
    wanted = (latents.bfloat16().float() - noise.bfloat16().float()).square().mean((1, 2, 3))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, wanted)


def test_masked_out_pixels_have_the_unmasked_weight() -> None:
    wanted = torch.tensor([[[[2.0, 4.0]], [[2.0, 4.0]]]])  # (1, 2, 1, 2): 4 inside, 16 outside
    mask, times = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([0.5])
    for outside, expected in {0.0: 4.0, 1.0: 10.0, 0.5: (4 + 0.5 * 16) / 1.5}.items():
        loss = Loss(masks=True, unmasked_weight=outside)
        found = example_losses(loss, flow(), torch.zeros_like(wanted), wanted, times, mask)
        assert found.item() == pytest.approx(expected)
    loss = Loss(masks=True, unmasked_weight=0.0)
    nothing = torch.zeros_like(mask)
    assert example_losses(loss, flow(), torch.zeros_like(wanted), wanted, times, nothing) == 0


# Prior preservation.


def test_prior_preservation_without_examples_of_a_kind() -> None:
    losses, none = torch.tensor([1.0, 3.0]), torch.tensor([False, False])
    assert prior_preservation(losses, none, 1.0) == (2, 2, 0)
    assert prior_preservation(losses, ~none, 0.5) == (1, 0, 2)


def test_class_gradient_carries_the_weight() -> None:
    losses = torch.ones(5, requires_grad=True)
    is_class = torch.tensor([False, True, True, False, True])
    prior_preservation(losses, is_class, 0.25)[0].backward()
    assert losses.grad is not None
    torch.testing.assert_close(losses.grad, torch.where(is_class, 0.25 / 3, 0.5))
