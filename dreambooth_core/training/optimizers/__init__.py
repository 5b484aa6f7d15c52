"""Optimizers by name, the learning rate at a step, and the optimizer's exact state.

AdamW: Loshchilov & Hutter 2017, arXiv:1711.05101; its 8-bit state: Dettmers et al. 2021,
arXiv:2110.02861. Adafactor: Shazeer & Stern 2018, arXiv:1804.04235. CAME: Luo et al. 2023,
arXiv:2307.02047. Prodigy: Mishchenko & Defazio 2023, arXiv:2306.06101. Schedule-free AdamW: Defazio
et al. 2024, arXiv:2405.15682.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from dreambooth_core.config import Optimizer, Train
from dreambooth_core.errors import ConfigError, one_line
from dreambooth_core.training.optimizers.combined import BackwardStepOptimizer, CombinedOptimizer
from dreambooth_core.training.optimizers.state import load_state, state_of

__all__ = [
    "load_state",
    "lr_factor",
    "make",
    "served",
    "state_bytes",
    "state_of",
    "step_in_backward",
    "training_mode",
]

Group = Mapping[str, Any]
"""`params`: parameters, `lr`: their full learning rate, `names`: their names, in the same order."""

RESTARTS = 3
"""Descents of `cosine_with_restarts`; with one it would be `cosine`."""
POWER = 2.0
"""Exponent of `polynomial`; with one it would be `linear`."""


def make(options: Optimizer, groups: Sequence[Group]) -> torch.optim.Optimizer:
    """The optimizer of the options over parameters that are on their device, in their layout.

    Its `param_groups` keep what else a group holds, and may be more than the groups given. With
    `adamw8bit` the weights become contiguous here: bitsandbytes would make them so at its first
    step, which a resumed training would take at another one. Raises `ConfigError` where the
    optimizer cannot run.
    """
    if options.fused_backward:
        return step_in_backward(options, groups)
    if options.name == "prodigy":
        # it takes the learning rate of the first group for all, so each gets one of its own
        return CombinedOptimizer([_one(options, [group]) for group in groups])
    return _one(options, groups)


def step_in_backward(options: Optimizer, groups: Sequence[Group]) -> torch.optim.Optimizer:
    """An optimizer per parameter that steps inside the backward pass and frees the gradient.

    Learning rates must be set before the backward pass; `step` only calls its closure. Raises
    `ConfigError` as `make` does, and for Prodigy, which needs all gradients at once.
    """
    if options.name == "prodigy":
        raise ConfigError(
            "optimizer.fused_backward cannot go with optimizer.name prodigy, whose step size "
            "follows from all gradients together: set optimizer.fused_backward: false"
        )
    return BackwardStepOptimizer(
        [_one(options, [single]) for group in groups for single in _singles(group)]
    )


def _singles(group: Group) -> Iterator[dict[str, Any]]:
    for weight, name in zip(group["params"], group["names"], strict=True):
        yield {**group, "params": [weight], "names": [name]}


def _one(options: Optimizer, groups: Sequence[Group]) -> torch.optim.Optimizer:
    copies = [dict(group) for group in groups]  # optimizers write into theirs
    if options.name == "adamw":
        return torch.optim.AdamW(copies, weight_decay=options.weight_decay, fused=True)
    if options.name == "adamw8bit":
        return _adamw8bit(copies, options.weight_decay)
    return _of_pytorch_optimizer(options, copies)


def _of_pytorch_optimizer(
    options: Optimizer, groups: list[dict[str, Any]]
) -> torch.optim.Optimizer:
    """One parameter at a time, which needs no second copy of all gradients.

    Adafactor takes the learning rate as it is, as all others do, instead of finding its own.
    """
    from pytorch_optimizer import CAME, AdaFactor, Prodigy, ScheduleFreeAdamW

    decay = options.weight_decay
    if options.name == "adafactor":
        return AdaFactor(
            groups,
            betas=(None, 0.999),
            scale_parameter=False,
            relative_step=False,
            weight_decay=decay,
            foreach=False,
        )
    if options.name == "came":
        return CAME(groups, weight_decay=decay, foreach=False)
    if options.name == "prodigy":
        return Prodigy(
            groups, weight_decay=decay, bias_correction=True, safeguard_warmup=True, foreach=False
        )
    return ScheduleFreeAdamW(groups, weight_decay=decay, foreach=False)


def _adamw8bit(groups: list[dict[str, Any]], weight_decay: float) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            f"optimizer.name adamw8bit needs bitsandbytes ({error}): "
            "install the gpu extra, or set optimizer.name: adamw"
        ) from error
    for weight in (weight for group in groups for weight in group["params"]):
        weight.data = weight.data.contiguous()
    _try_8bit(AdamW8bit, groups[0]["params"][0].device)
    made: torch.optim.Optimizer = AdamW8bit(groups, weight_decay=weight_decay)
    return made


def _try_8bit(kind: Any, device: torch.device) -> None:
    """Take a step with one weight, large enough to be held in 8 bits."""
    weight = Parameter(torch.ones(4096, device=device))
    weight.grad = torch.ones_like(weight)
    try:
        kind([weight]).step()
    except (RuntimeError, NotImplementedError, OSError) as error:
        raise ConfigError(
            f"bitsandbytes cannot step on {device} ({one_line(error)}): set optimizer.name: adamw"
        ) from error


def training_mode(optimizer: torch.optim.Optimizer, on: bool) -> None:
    """Put the weights of `schedule_free` where they train, or where they serve; others: nothing.

    Back and forth rounds twice; `served` does not.
    """
    for part in _schedule_free(optimizer):
        (part.train if on else part.eval)()


@contextmanager
def served(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """The weights as they are served while it lasts, and bitwise as they were afterwards."""
    parts = _schedule_free(optimizer)
    weights = [
        weight for part in parts for group in part.param_groups for weight in group["params"]
    ]
    kept = [weight.detach().clone() for weight in weights]
    training_mode(optimizer, False)
    try:
        yield
    finally:
        training_mode(optimizer, True)
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)


def _schedule_free(optimizer: torch.optim.Optimizer) -> list[Any]:
    parts = optimizer.parts if isinstance(optimizer, CombinedOptimizer) else (optimizer,)
    return [part for part in parts if "train_mode" in part.defaults]


def lr_factor(train: Train, step: int) -> float:
    """Share of the learning rate at a step from 0, in [0, 1].

    Warm-up step s of w has (s + 1) / w, so that the first one moves already; then come
    diffusers' schedules, the cosine with `RESTARTS`, the polynomial of `POWER`.
    """
    if step < train.lr_warmup_steps:
        return (step + 1) / train.lr_warmup_steps
    return float(_schedule(train.lr_schedule, train.lr_warmup_steps, train.steps)(step))


@cache
def _schedule(name: str, warmup: int, steps: int) -> Callable[[int], float]:
    from diffusers.optimization import get_scheduler

    idle = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    made = get_scheduler(
        name,
        idle,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        num_cycles=RESTARTS,
        power=POWER,
    )
    factor: Callable[[int], float] = made.lr_lambdas[0]
    return factor


def state_bytes(name: str, weight: Tensor) -> int:
    """Bytes that the optimizer of this name holds for a weight, which may have no data."""
    count, full = weight.numel(), weight.nbytes
    if name == "adamw":
        return 2 * full + 4
    if name == "adamw8bit":
        return 8 * count if count < 4096 else 2 * count + 2 * 4 * math.ceil(count / 256)
    if name == "prodigy":
        return 4 * full
    if name == "schedule_free":
        return 2 * full
    factors = full // weight.shape[-1] + full // weight.shape[-2] if weight.ndim > 1 else full
    if name == "adafactor":
        return factors + weight.element_size()
    return full + (2 if weight.ndim > 1 else 1) * factors + weight.element_size()
