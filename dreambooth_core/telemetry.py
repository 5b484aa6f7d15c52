"""Numbers for dashboards: each process sends its own, and `exporter` adds up those of all.

A run is several short processes, on machines that come and go: nobody could ask each of them in
time. So a number leaves as a datagram for the place that the environment names, and without one
nothing leaves. Lines are StatsD's, with labels as DogStatsD writes them, since others read these
too. Sending waits for nobody and never fails; what is lost on the way is missing from a curve
alone, for the truth is in the store and in MLflow.
"""

import math
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Literal, NamedTuple

ADDRESS = "DREAMBOOTH_METRICS"
"""Variable of the environment: HOST:PORT of the exporter."""
STAGES = (
    *("validate", "priors", "train", "evaluate", "register"),
    *("gate", "promote", "sample", "report"),
)
NAMES = ()
"""Instead of a label's values: names of registered models."""

Kind = Literal["counter", "gauge", "histogram"]
_LETTERS: Mapping[Kind, str] = {"counter": "c", "gauge": "g", "histogram": "h"}


class Metric(NamedTuple):
    """What is told under a name."""

    kind: Kind
    what: str
    labels: Mapping[str, tuple[str, ...]] = {}
    """Label -> the values that it has, or `NAMES`."""


_OF_A_MODEL = {"model": NAMES}

METRICS: Mapping[str, Metric] = {
    "dreambooth_step": Metric("gauge", "steps done", _OF_A_MODEL),
    "dreambooth_steps_per_second": Metric(
        "gauge", "training steps, since the point before", _OF_A_MODEL
    ),
    "dreambooth_loss": Metric("gauge", "on the photos, since the point before", _OF_A_MODEL),
    "dreambooth_memory_bytes": Metric(
        "gauge",
        "the most that the first rank held on its device; without a GPU, its process",
        _OF_A_MODEL,
    ),
    "dreambooth_checkpoint_stall_seconds_total": Metric(
        "counter", "time that trainings waited for checkpoints"
    ),
    "dreambooth_images_total": Metric(
        "counter", "images drawn: class images, evaluations, looks, samples, orders"
    ),
    "dreambooth_stages_total": Metric(
        "counter",
        "stages that ended",
        {"stage": STAGES, "status": ("done", "reused", "skipped", "failed")},
    ),
    "dreambooth_stage_seconds": Metric("histogram", "of stages that were made", {"stage": STAGES}),
    "dreambooth_retries_total": Metric(
        "counter", "tasks tried again, since the store had a hiccup"
    ),
    "dreambooth_runs_total": Metric(
        "counter", "runs that ended", {"state": ("done", "failed", "preempted")}
    ),
    "dreambooth_gate_decisions_total": Metric(
        "counter", "what the gate decided", {"outcome": ("promote", "keep", "inconclusive")}
    ),
    "dreambooth_gpu_seconds_total": Metric("counter", "seconds times GPUs that stages held"),
    "dreambooth_gpu_seconds_saved_total": Metric("counter", "of these, saved by reuse"),
}


def send(name: str, value: float, **labels: str) -> None:
    """Send one number of `METRICS`; of a counter, by how much it grew.

    Nothing happens where the environment names no place, and nothing goes wrong where nobody
    listens at it.
    """
    place = os.environ.get(ADDRESS)
    if place and math.isfinite(value) and (way := _way(place)):
        with suppress(OSError):
            way.send(line(name, value, labels))


def line(name: str, value: float, labels: Mapping[str, str]) -> bytes:
    """`dreambooth_step:12|g|#model:robot`."""
    tags = ",".join(f"{label}:{word}" for label, word in labels.items())
    told = f"{name}:{value:.12g}|{_LETTERS[METRICS[name].kind]}"
    return f"{told}|#{tags}".encode() if tags else told.encode()


@cache
def _way(place: str) -> socket.socket | None:
    """A socket towards the place; None, and a word about it once, for one that there is not."""
    host, _, port = place.rpartition(":")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        way = socket.socket(family, kind)
        way.connect(address)
        way.setblocking(False)
    except (OSError, UnicodeError) as error:
        print(
            f"no numbers are told: {ADDRESS} is {place}, not HOST:PORT ({error})", file=sys.stderr
        )
        return None
    return way
