"""Several processes that train one model: how they meet, wait for one another, and agree.

On one machine they meet at a file and speak over the loopback interface: nothing listens to the
network. On several they meet where torchrun says, and speak over the machines' own.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as distributed


def own() -> int:
    """Which of them this process is, as torchrun says: the first is 0, and so is one alone."""
    return int(os.environ.get("RANK", 0))


def count() -> int:
    """How many there are; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def join(meeting: Path, minutes: float) -> None:
    """Meet the others, at a file of this attempt's own where all are here; nothing where there are none.

    An answer that takes longer than `minutes` raises from then on.
    """
    if count() == 1:
        return
    distributed.init_process_group(
        # whatever is on the CPU, as the question whether to stop, does not wait for the GPU
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        init_method=f"file://{meeting}" if _all_here() else "env://",
        rank=own(),
        world_size=count(),
        timeout=timedelta(minutes=minutes),
    )


def _all_here() -> bool:
    return int(os.environ.get("LOCAL_WORLD_SIZE", count())) == count()


def leave() -> None:
    """Part, all at about the same time; whoever fails leaves without it, as it would wait.

    Whoever is first waits for the last: a connection that closes early can cost the others
    what they were still reading from it.
    """
    if count() > 1:
        with suppress(RuntimeError):  # one that died after its last step costs nobody the result
            distributed.barrier()
        distributed.destroy_process_group()


@contextmanager
def first_ahead() -> Iterator[None]:
    """The first rank runs the block before all others, which find what it left in the caches."""
    if own() > 0:
        distributed.barrier()
    yield
    if own() == 0 and count() > 1:
        distributed.barrier()


class FlagReduction:
    """Asked by every rank at every step; the answer comes with the next step, so nobody waits."""

    def __init__(self) -> None:
        self._asked: tuple[distributed.Work, torch.Tensor] | None = None

    def ask(self, ours: bool) -> bool:
        """Whether any rank said yes the time before; of a process alone, what it says now."""
        if count() == 1:
            return ours
        before, said = self._asked, torch.tensor(int(ours))
        work = distributed.all_reduce(said, async_op=True)
        assert work is not None  # it is None for ranks outside of a group
        self._asked = work, said
        if before is None:
            return False
        before[0].wait()
        return bool(before[1])


def first_word(ours: str) -> str:
    """What the lowest rank with anything to say says; every rank must ask."""
    if count() == 1:
        return ours
    said = [""] * count()
    distributed.all_gather_object(said, ours)
    return next(filter(None, said), "")
