"""FSDP2 (Zhao et al. 2023, arXiv:2304.11277): each rank holds a shard of every weight.

A block's weights are gathered only while it computes. Checkpoints hold full tensors, as without sharding.
"""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from dreambooth_core.diffusion.adapters import Trained
from dreambooth_core.diffusion.families import Parts
from dreambooth_core.training import launcher


def shard(parts: Parts, trained: Trained, device: torch.device) -> Trained:
    """Shard all models over the ranks, in place, block by block; returns the sharded trainable weights.

    Blocks are the models' `_no_split_modules`. Every rank must have loaded the same weights.
    """
    mesh = init_device_mesh(device.type, (launcher.world_size(),))
    for component in parts.components.values():
        if isinstance(component, nn.Module):
            blocks = set(getattr(component, "_no_split_modules", None) or ())
            for module in reversed([*component.modules()]):  # inner blocks first
                if module is component or type(module).__name__ in blocks:
                    fully_shard(module, mesh=mesh)
    sharded = {}
    for name, weights in trained.items():
        found = dict(parts[name].named_parameters())
        sharded[name] = {weight: found[weight] for weight in weights}
    return sharded


def full_tensor(value: Tensor) -> Tensor:
    """The full tensor as a contiguous CPU copy on rank 0; an empty tensor on other ranks.

    A collective operation: all ranks must call it for the same tensors in the same order.
    """
    full = value.detach()
    if isinstance(full, DTensor):
        full = full.full_tensor()
    if launcher.rank() > 0:
        return torch.empty(0)
    return full.to("cpu", memory_format=torch.contiguous_format, copy=True)


def local_shard(value: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of a full tensor, sharded as `like`; `value` itself if `like` is not sharded."""
    if not isinstance(like, DTensor):
        return value
    placed = value.to(like.device)
    # without a source rank each cuts its own shard
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)
