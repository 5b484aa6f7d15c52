"""Cost of stages: wall, CPU and GPU seconds, and their records in the store."""

import os
import resource
import time
from pathlib import Path

from dreambooth_core.digests import digest_json
from dreambooth_core.storage.blobs import get_record, put_record
from dreambooth_core.storage.records import Cost, Record
from dreambooth_core.storage.stores import Store


class CostMeter:
    """Measures from its creation; child processes are included once they have ended."""

    def __init__(self, gpus: int = 0) -> None:
        self._gpus = gpus
        self._started, self._cpu = time.monotonic(), _cpu_seconds()

    def read(self) -> Cost:
        """The cost so far: wall seconds, CPU seconds, and wall seconds times GPUs."""
        seconds = time.monotonic() - self._started
        return Cost(
            seconds=round(seconds, 3),
            cpu_seconds=round(_cpu_seconds() - self._cpu, 3),
            gpu_seconds=round(seconds * self._gpus, 3),
        )


def visible_gpus() -> int:
    """Number of GPUs visible to this process; without torch, which flows do not import."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([word for word in visible.split(",") if word.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def store_cost(store: Store, result: Record, cost: Cost) -> None:
    """Store the cost of computing `result`; an existing record is kept."""
    put_record(store, _key(result), cost)


def stored_cost(store: Store, result: Record) -> Cost | None:
    """The stored cost of computing `result`, or None."""
    return get_record(store, _key(result), Cost)


def _key(result: Record) -> str:
    return f"costs/{type(result).__name__}/{digest_json(result)}.json"


def _cpu_seconds() -> float:
    own, ended = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
