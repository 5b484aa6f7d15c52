"""Noise schedulers of diffusers by name, for a model whose own one says what it was trained for."""

import inspect
from typing import TYPE_CHECKING, Any

from dreambooth_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 24
"""Of the trial that every noise scheduler has to pass."""
TOLERANCE = 0.2
"""How far from its goal a trial may end, the noise that it starts from having length 1 per number."""


def load_scheduler(name: str, own: Any, flow: bool) -> Any:
    """The noise scheduler `diffusers.<name>` for a model with the noise scheduler `own`.

    It takes over `own`'s config: noise levels, what the denoiser predicts. Raises `ConfigError` for
    a name that diffusers does not have, and for one that does not lead this model's noise back to
    images, or draws noise of its own that no seed decides.
    """
    import diffusers

    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if not (inspect.isclass(kind) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ConfigError(
            f"sampler.noise_scheduler: diffusers has no {name}: "
            "use one such as DDIMScheduler or EulerDiscreteScheduler"
        )
    made = _made(kind, own, flow)
    if made is None or not _takes(made, own) or not _arrives(made, own, flow):
        matter = "flow matching" if flow else f"{own.config.prediction_type} prediction"
        usual = "FlowMatchEulerDiscreteScheduler" if flow else "DDIMScheduler"
        raise ConfigError(
            f"sampler.noise_scheduler: {name} cannot draw from a model of {matter} with a "
            f"{type(own).__name__} of its own: use one such as {usual}, or leave it out"
        )
    return _made(kind, own, flow)


def _made(kind: Any, own: Any, flow: bool) -> Any:
    """A fresh one with `own`'s config, None when it does not take that."""
    told = {}
    if flow and "use_flow_sigmas" in inspect.signature(kind.__init__).parameters:
        shift = {"flow_shift": own.config.get("shift") or own.config.get("flow_shift") or 1.0}
        told = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", **shift}
    try:
        return kind.from_config(own.config, **told)
    except (ValueError, TypeError, NotImplementedError, ImportError):
        return None


def _takes(made: Any, own: Any) -> bool:
    """Whether the pipeline may set the steps of both in the same way."""

    def options(scheduler: Any) -> set[str]:
        return set(inspect.signature(scheduler.set_timesteps).parameters) & {"sigmas", "mu"}

    return options(own) <= options(made)


def _arrives(made: Any, own: Any, flow: bool) -> bool:
    """Whether it finds the way from noise to one image, with a denoiser that knows this image.

    What such a denoiser answers follows from the objective alone: for a diffusion from x = a z + s n
    (a^2 + s^2 = 1) the noise n, or the velocity a n - s z, or z itself; for a flow from
    x = (1 - t) z + t n the velocity n - z. A noise scheduler made for something else goes elsewhere.
    """
    import torch

    draw = torch.Generator().manual_seed(0)
    goal = 0.5 * torch.randn(1, 4, 8, 8, generator=draw)
    noisy = torch.randn(1, 4, 8, 8, generator=draw)
    oracle = _velocity if flow else _prediction
    # the pipelines of flows hand their images' generators to no step
    chance = {"generator": draw} if not flow and _draws(made) else {}
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        try:
            made.set_timesteps(STEPS, **_shifted(made))
            noisy = noisy * float(getattr(made, "init_noise_sigma", 1.0))
            for time in made.timesteps:
                seen = noisy if flow else made.scale_model_input(noisy, time)
                answer = oracle(seen, goal, time, own)
                noisy = made.step(answer, time, noisy, **chance).prev_sample
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError):
            return False
        seeded = torch.equal(before, torch.get_rng_state())
    return seeded and bool((noisy - goal).square().mean().sqrt() < TOLERANCE)


def _shifted(made: Any) -> dict[str, float]:
    return {"mu": 0.5} if made.config.get("use_dynamic_shifting") else {}


def _draws(made: Any) -> bool:
    step = getattr(made, "step", None)
    return step is not None and "generator" in inspect.signature(step).parameters


def _velocity(seen: "Tensor", goal: "Tensor", time: "Tensor", own: Any) -> "Tensor":
    level = (time.float() / own.config.num_train_timesteps).clamp(min=1e-4)
    answer: Tensor = (seen - goal) / level
    return answer


def _prediction(seen: "Tensor", goal: "Tensor", time: "Tensor", own: Any) -> "Tensor":
    """Between two whole times, the nearest one's noise level is meant."""
    kept = own.alphas_cumprod[int(time.round())]
    signal, noise = kept.sqrt(), (1 - kept).sqrt()
    found = (seen - signal * goal) / noise
    answers = {
        "epsilon": found,
        "v_prediction": signal * found - noise * goal,
        "sample": goal,
    }
    answer: Tensor = answers[own.config.prediction_type]
    return answer
