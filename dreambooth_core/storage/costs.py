"""What a stage costs, and what finding its result again saves."""

import os
import resource
import time
from pathlib import Path

from dreambooth_core.digests import digest_json
from dreambooth_core.storage.blobs import get_record, put_record
from dreambooth_core.storage.records import Cost, Record
from dreambooth_core.storage.stores import Store


class CostMeter:
    """Measures from when it is made; children count from when they have ended."""

    def __init__(self, gpus: int = 0) -> None:
        self._gpus = gpus
        self._started, self._cpu = time.monotonic(), _cpu_seconds()

    def read(self) -> Cost:
        """The cost so far: wall and processor seconds, and those for which GPUs were held."""
        seconds = time.monotonic() - self._started
        return Cost(
            seconds=round(seconds, 3),
            cpu_seconds=round(_cpu_seconds() - self._cpu, 3),
            gpu_seconds=round(seconds * self._gpus, 3),
        )


def visible_gpus() -> int:
    """GPUs of this machine that the process may see; asks no library, since flows import none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([word for word in visible.split(",") if word.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def store_cost(store: Store, result: Record, cost: Cost) -> None:
    """Keep what making `result` cost; the first maker's figures stay."""
    put_record(store, _place(result), cost)


def stored_cost(store: Store, result: Record) -> Cost | None:
    """What making `result` cost, if it was written down."""
    return get_record(store, _place(result), Cost)


def _place(result: Record) -> str:
    return f"costs/{type(result).__name__}/{digest_json(result)}.json"


def _cpu_seconds() -> float:
    own, ended = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
