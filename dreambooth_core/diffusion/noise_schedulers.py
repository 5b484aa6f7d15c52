"""diffusers' noise schedulers by name, accepted only when they sample the model correctly."""

import inspect
from typing import TYPE_CHECKING, Any

from dreambooth_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 24
"""Sampling steps of the trial that every noise scheduler has to pass."""
TOLERANCE = 0.2
"""Largest root mean square error of the trial's result; its initial noise has 1 per element."""


def load_scheduler(name: str, base: Any, flow: bool) -> Any:
    """The scheduler `diffusers.<name>` with the config of `base`, the model's own scheduler.

    Raises `ConfigError` for a name that diffusers does not have, and for a scheduler that does not
    sample this model's images from noise, or that draws random numbers outside the image's seed.
    """
    import diffusers

    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if not (inspect.isclass(kind) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ConfigError(
            f"sampler.noise_scheduler: diffusers has no {name}: "
            "use one such as DDIMScheduler or EulerDiscreteScheduler"
        )
    made = _from_base(kind, base, flow)
    if made is None or not _takes_steps(made, base) or not _samples_target(made, base, flow):
        objective = "flow matching" if flow else f"{base.config.prediction_type} prediction"
        usual = "FlowMatchEulerDiscreteScheduler" if flow else "DDIMScheduler"
        raise ConfigError(
            f"sampler.noise_scheduler: {name} cannot sample a model of {objective} whose own "
            f"scheduler is {type(base).__name__}: use one such as {usual}, or leave it out"
        )
    return _from_base(kind, base, flow)


def _from_base(kind: Any, base: Any, flow: bool) -> Any:
    """A new scheduler with `base`'s config; None when the class rejects it."""
    options = {}
    if flow and "use_flow_sigmas" in inspect.signature(kind.__init__).parameters:
        shift = base.config.get("shift") or base.config.get("flow_shift") or 1.0
        options = {
            "use_flow_sigmas": True,
            "prediction_type": "flow_prediction",
            "flow_shift": shift,
        }
    try:
        return kind.from_config(base.config, **options)
    except (ValueError, TypeError, NotImplementedError, ImportError):
        return None


def _takes_steps(made: Any, base: Any) -> bool:
    """Whether `set_timesteps` accepts the pipeline's arguments `sigmas` and `mu` where `base` does."""

    def options(scheduler: Any) -> set[str]:
        return set(inspect.signature(scheduler.set_timesteps).parameters) & {"sigmas", "mu"}

    return options(base) <= options(made)


def _samples_target(made: Any, base: Any, flow: bool) -> bool:
    """Whether sampling with a perfect denoiser of one fixed `target` ends within `TOLERANCE` of it.

    The perfect prediction follows from the objective. Diffusion, x = a z + s n with a^2 + s^2 = 1:
    the noise n, the velocity a n - s z, or z. Flow, x = (1 - t) z + t n: the velocity n - z.
    Also false when the scheduler draws from the global random generator.
    """
    import torch

    draw = torch.Generator().manual_seed(0)
    target = 0.5 * torch.randn(1, 4, 8, 8, generator=draw)
    noisy = torch.randn(1, 4, 8, 8, generator=draw)
    predict = _velocity if flow else _prediction
    # pipelines of flow models pass no generator to `step`
    random = {"generator": draw} if not flow and _has_generator(made) else {}
    shift = {"mu": 0.5} if made.config.get("use_dynamic_shifting") else {}
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        try:
            made.set_timesteps(STEPS, **shift)
            noisy = noisy * float(getattr(made, "init_noise_sigma", 1.0))
            for time in made.timesteps:
                scaled = noisy if flow else made.scale_model_input(noisy, time)
                prediction = predict(scaled, target, time, base)
                noisy = made.step(prediction, time, noisy, **random).prev_sample
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError):
            return False
        seeded = torch.equal(before, torch.get_rng_state())
    return seeded and bool((noisy - target).square().mean().sqrt() < TOLERANCE)


def _has_generator(made: Any) -> bool:
    step = getattr(made, "step", None)
    return step is not None and "generator" in inspect.signature(step).parameters


def _velocity(noisy: "Tensor", target: "Tensor", time: "Tensor", base: Any) -> "Tensor":
    level = (time.float() / base.config.num_train_timesteps).clamp(min=1e-4)
    velocity: Tensor = (noisy - target) / level
    return velocity


def _prediction(noisy: "Tensor", target: "Tensor", time: "Tensor", base: Any) -> "Tensor":
    """Perfect prediction of a diffusion; a fractional time takes the nearest noise level."""
    alpha_bar = base.alphas_cumprod[int(time.round())]
    signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    noise = (noisy - signal * target) / sigma
    predictions = {
        "epsilon": noise,
        "v_prediction": signal * noise - sigma * target,
        "sample": target,
    }
    prediction: Tensor = predictions[base.config.prediction_type]
    return prediction
