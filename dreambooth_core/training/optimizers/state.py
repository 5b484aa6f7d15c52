"""Exact state of the optimizers, as named tensors and JSON scalars."""

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
    """The full state: contiguous CPU tensors, and JSON scalars.

    Keys are `<weight name>/<entry>` and `groups/<index>/<entry>`; `kind` names the optimizer class.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, int | float | str] = {"kind": _kind(optimizer)}
    for prefix, entries in _entries(optimizer, names):
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}/{key}"] = fsdp.full_tensor(value)
            elif isinstance(value, int | float) and math.isfinite(value):
                # not Prodigy's growth_rate, which is infinite: not valid JSON
                scalars[f"{prefix}/{key}"] = value
    return tensors, scalars


def load_state(
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    tensors: Mapping[str, Tensor],
    scalars: Scalars,
) -> None:
    """Load what `state_of` returned, so that the next step is bitwise the same.

    A tensor of its weight's shape gets the weight's memory layout, which decides the order of
    summation. Raises `StageFailed` for the state of another optimizer or of other weights.
    """
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for full, value in {**tensors, **scalars}.items():
        prefix, _, key = full.rpartition("/")
        found[prefix][key] = value
    kind = found.pop("", {}).get("kind")
    groups = {f"groups/{index}": group for index, group in enumerate(optimizer.param_groups)}
    weights = {name: weight for weight, name in names.items()}
    if kind != _kind(optimizer) or not found.keys() <= groups.keys() | weights.keys():
        raise StageFailed(
            f"the saved optimizer state is of {kind} over other weights than this "
            f"{_kind(optimizer)}'s; delete the checkpoint and run again"
        )
    optimizer.state.clear()
    for prefix, entries in found.items():
        weight = weights[prefix] if prefix in weights else groups[prefix]["params"][0]
        target = optimizer.state[weight] if prefix in weights else groups[prefix]
        target.update({key: _moved(value, weight) for key, value in entries.items()})


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
    return f"{type(optimizer).__name__} {type(optimizer.members[0]).__name__}"


def _moved(value: Any, weight: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.shape != weight.shape:
        return value.to(weight.device, copy=True)
    like = torch.empty_like(weight.detach(), dtype=value.dtype, memory_format=torch.preserve_format)
    return like.copy_(fsdp.local_shard(value, weight))
