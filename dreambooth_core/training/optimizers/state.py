"""The exact state of any of the optimizers, as named tensors and JSON's scalars."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.errors import StageFailed
from dreambooth_core.training import fsdp
from dreambooth_core.training.optimizers.combined import CombinedOptimizer

Scalars = Mapping[str, int | float | str]


def state_of(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> tuple[dict[str, Tensor], dict[str, int | float | str]]:
    """Everything that the next step hangs on: tensors, contiguous on the CPU, and JSON's scalars.

    Keys are `<weight's name>/<entry>` and `groups/<index>/<entry>`; `kind` is the optimizer's.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, int | float | str] = {"kind": _kind(optimizer)}
    for place, entries in _entries(optimizer, names):
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{place}/{key}"] = fsdp.whole(value)
            elif isinstance(value, int | float) and math.isfinite(value):
                # not Prodigy's growth_rate: it is endless, which JSON does not know
                scalars[f"{place}/{key}"] = value
    return tensors, scalars


def load_state(
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    tensors: Mapping[str, Tensor],
    scalars: Scalars,
) -> None:
    """Make the optimizer's state what `state_of` gave, so that the next step is the same bitwise.

    A tensor of its weight's shape gets the weight's own memory layout: the order of sums hangs on
    it. Raises `StageFailed` when the state is of another optimizer or of other weights.
    """
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for full, value in {**tensors, **scalars}.items():
        place, _, key = full.rpartition("/")
        found[place][key] = value
    kind = found.pop("", {}).get("kind")
    groups = {f"groups/{index}": group for index, group in enumerate(optimizer.param_groups)}
    weights = {name: weight for weight, name in names.items()}
    if kind != _kind(optimizer) or not found.keys() <= groups.keys() | weights.keys():
        raise StageFailed(
            f"the saved optimizer state is of {kind} over other weights than this "
            f"{_kind(optimizer)}'s; delete the checkpoint and run again"
        )
    optimizer.state.clear()
    for place, entries in found.items():
        weight = weights[place] if place in weights else groups[place]["params"][0]
        target = optimizer.state[weight] if place in weights else groups[place]
        target.update({key: _placed(value, weight) for key, value in entries.items()})


def _entries(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for index, group in enumerate(optimizer.param_groups):
        yield f"groups/{index}", group
    for weight, entries in optimizer.state.items():
        yield names[weight], entries


def _kind(optimizer: torch.optim.Optimizer) -> str:
    if not isinstance(optimizer, CombinedOptimizer):
        return type(optimizer).__name__
    return f"{type(optimizer).__name__} {type(optimizer.parts[0]).__name__}"


def _placed(value: Any, weight: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.shape != weight.shape:
        return value.to(weight.device, copy=True)
    like = torch.empty_like(weight.detach(), dtype=value.dtype, memory_format=torch.preserve_format)
    return like.copy_(fsdp.piece(value, weight))
