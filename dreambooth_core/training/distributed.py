"""The process group of several ranks: start, barriers, and a stop flag that all ranks share.

On one machine the ranks rendezvous through a file and communicate over loopback only. On several,
torchrun's store and the machines' own network interfaces are used.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as distributed

from dreambooth_core.training.launcher import rank, world_size


def init(rendezvous: Path, minutes: float) -> None:
    """Join the process group, through the file `rendezvous` on one machine; no-op for a single rank.

    Collective operations that take longer than `minutes` raise from then on.
    """
    if world_size() == 1:
        return
    one_machine = int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) == world_size()
    distributed.init_process_group(
        # collectives of CPU tensors, as the stop flag, do not synchronise with the GPU
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        init_method=f"file://{rendezvous}" if one_machine else "env://",
        rank=rank(),
        world_size=world_size(),
        timeout=timedelta(minutes=minutes),
    )


def shut_down() -> None:
    """Destroy the process group after a barrier; not for a rank that failed, which would block.

    Without the barrier a connection that closes early can cost other ranks unread data.
    """
    if world_size() > 1:
        with suppress(
            RuntimeError
        ):  # a rank that died after its last step does not fail the others
            distributed.barrier()
        distributed.destroy_process_group()


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Run the block on rank 0 before all other ranks, which then find the caches filled."""
    if rank() > 0:
        distributed.barrier()
    yield
    if rank() == 0 and world_size() > 1:
        distributed.barrier()


class FlagReduction:
    """Asynchronous logical OR over ranks; each call returns the result of the previous one."""

    def __init__(self) -> None:
        self._pending: tuple[distributed.Work, torch.Tensor] | None = None

    def reduce(self, flag: bool) -> bool:
        """Whether any rank's previous flag was set; for a single rank, `flag` itself."""
        if world_size() == 1:
            return flag
        before, value = self._pending, torch.tensor(int(flag))
        work = distributed.all_reduce(value, async_op=True)
        assert work is not None  # it is None for ranks outside of a group
        self._pending = work, value
        if before is None:
            return False
        before[0].wait()
        return bool(before[1])


def first_reason(own: str) -> str:
    """The non-empty string of the lowest rank; all ranks must call it."""
    if world_size() == 1:
        return own
    reasons = [""] * world_size()
    distributed.all_gather_object(reasons, own)
    return next(filter(None, reasons), "")
