"""One model in shards: of every weight, each rank holds a piece (FSDP2, Zhao et al. 2023, arXiv:2304.11277).

A block's weights are whole while it computes, and no longer. Checkpoints hold whole tensors, as
those of a model in one piece do.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from dreambooth_core.diffusion.families import Parts
from dreambooth_core.training import distributed

Trained = Mapping[str, Mapping[str, nn.Parameter]]


def shard(parts: Parts, trained: Trained, device: torch.device) -> Trained:
    """Shard all models over the ranks, in place, block by block; what moves, of which each has a piece.

    Blocks are those that the libraries never split. Every rank must have loaded the same weights.
    """
    mesh = init_device_mesh(device.type, (distributed.count(),))
    for part in parts.components.values():
        if isinstance(part, nn.Module):
            blocks = set(getattr(part, "_no_split_modules", None) or ())
            for module in reversed([*part.modules()]):  # those within others first
                if module is part or type(module).__name__ in blocks:
                    fully_shard(module, mesh=mesh)
    moving = {}
    for component, weights in trained.items():
        found = dict(parts[component].named_parameters())
        moving[component] = {name: found[name] for name in weights}
    return moving


def whole(value: Tensor) -> Tensor:
    """All of a tensor as a contiguous copy on the CPU, for the first rank, which alone writes.

    The other ranks, all of which must ask for the same tensors in the same order, get an empty one.
    """
    full = value.detach()
    if isinstance(full, DTensor):
        full = full.full_tensor()
    if distributed.own() > 0:
        return torch.empty(0)
    return full.to("cpu", memory_format=torch.contiguous_format, copy=True)


def piece(value: Tensor, like: Tensor) -> Tensor:
    """What this rank holds of a tensor that every rank has, where `like` is in shards; else all."""
    if not isinstance(like, DTensor):
        return value
    placed = value.to(like.device)
    # without a source rank each cuts out its own
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)
