"""Optimizers by name, learning rate schedules, and optimizer state for checkpoints.

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
    "inference_weights",
    "load_state",
    "lr_factor",
    "make",
    "state_bytes",
    "state_of",
    "step_in_backward",
    "training_mode",
]

Group = Mapping[str, Any]
"""`params`: parameters; `lr`: peak learning rate; `names`: the parameters' names, in the same order."""

RESTARTS = 3
"""Cycles of `cosine_with_restarts`."""
POWER = 2.0
"""Exponent of `polynomial`."""


def make(options: Optimizer, groups: Sequence[Group]) -> torch.optim.Optimizer:
    """The optimizer of the options over parameters that are on their device, in their memory layout.

    Its `param_groups` keep all other entries of the groups, and may outnumber them. `adamw8bit`
    makes weights contiguous here: bitsandbytes would at its first step, which differs for a resumed
    training. Raises `ConfigError` if the optimizer cannot run on the device.
    """
    if options.fused_backward:
        return step_in_backward(options, groups)
    if options.name == "prodigy":
        # Prodigy applies the first group's learning rate to all groups: one optimizer per group
        return CombinedOptimizer([_one(options, [group]) for group in groups])
    return _one(options, groups)


def step_in_backward(options: Optimizer, groups: Sequence[Group]) -> torch.optim.Optimizer:
    """One optimizer per parameter, which steps inside the backward pass and frees the gradient.

    Learning rates must be set before the backward pass; `step` only calls its closure. Raises
    `ConfigError` like `make`, and for Prodigy, which needs all gradients together.
    """
    if options.name == "prodigy":
        raise ConfigError(
            "optimizer.fused_backward cannot go with optimizer.name prodigy, whose step size "
            "follows from all gradients together: set optimizer.fused_backward: false"
        )
    return BackwardStepOptimizer(
        [_one(options, [single]) for group in groups for single in _single_weights(group)]
    )


def _single_weights(group: Group) -> Iterator[dict[str, Any]]:
    for weight, name in zip(group["params"], group["names"], strict=True):
        yield {**group, "params": [weight], "names": [name]}


def _one(options: Optimizer, groups: Sequence[Group]) -> torch.optim.Optimizer:
    copies = [dict(group) for group in groups]  # optimizers modify their groups
    if options.name == "adamw":
        return torch.optim.AdamW(copies, weight_decay=options.weight_decay, fused=True)
    if options.name == "adamw8bit":
        return _adamw8bit(copies, options.weight_decay)
    return _of_pytorch_optimizer(options, copies)


def _of_pytorch_optimizer(
    options: Optimizer, groups: list[dict[str, Any]]
) -> torch.optim.Optimizer:
    """Not `foreach`, which would need a second copy of all gradients.

    Adafactor uses the learning rate as given, without its relative step size.
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
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, weight_decay=weight_decay)
    return optimizer


def _try_8bit(kind: Any, device: torch.device) -> None:
    """Take a step with one weight of 4096 elements, the least that gets 8-bit state."""
    weight = Parameter(torch.ones(4096, device=device))
    weight.grad = torch.ones_like(weight)
    try:
        kind([weight]).step()
    except (RuntimeError, NotImplementedError, OSError) as error:
        raise ConfigError(
            f"bitsandbytes cannot step on {device} ({one_line(error)}): set optimizer.name: adamw"
        ) from error


def training_mode(optimizer: torch.optim.Optimizer, on: bool) -> None:
    """Switch the weights of `schedule_free` between training and inference; no-op for others.

    A round trip rounds twice; `inference_weights` restores exactly.
    """
    for member in _schedule_free(optimizer):
        (member.train if on else member.eval)()


@contextmanager
def inference_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within the block, the weights of inference; bitwise restored afterwards."""
    members = _schedule_free(optimizer)
    weights = [
        weight for member in members for group in member.param_groups for weight in group["params"]
    ]
    saved = [weight.detach().clone() for weight in weights]
    training_mode(optimizer, False)
    try:
        yield
    finally:
        training_mode(optimizer, True)
        with torch.no_grad():
            for weight, before in zip(weights, saved, strict=True):
                weight.copy_(before)


def _schedule_free(optimizer: torch.optim.Optimizer) -> list[Any]:
    members = optimizer.members if isinstance(optimizer, CombinedOptimizer) else (optimizer,)
    return [member for member in members if "train_mode" in member.defaults]


def lr_factor(train: Train, step: int) -> float:
    """Factor of the learning rate at a step, counted from 0; in [0, 1].

    (s + 1) / w at warm-up step s of w, so that the first step is not zero; then diffusers'
    schedules, with `RESTARTS` and `POWER`.
    """
    if step < train.lr_warmup_steps:
        return (step + 1) / train.lr_warmup_steps
    return float(_schedule(train.lr_schedule, train.lr_warmup_steps, train.steps)(step))


@cache
def _schedule(name: str, warmup: int, steps: int) -> Callable[[int], float]:
    from diffusers.optimization import get_scheduler

    unused = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_scheduler(
        name,
        unused,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        num_cycles=RESTARTS,
        power=POWER,
    )
    factor: Callable[[int], float] = scheduler.lr_lambdas[0]
    return factor


def state_bytes(name: str, weight: Tensor) -> int:
    """Bytes of state that the named optimizer holds for a weight, which may be on the meta device."""
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
