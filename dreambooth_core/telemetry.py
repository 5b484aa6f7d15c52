"""Metrics of runs as UDP datagrams to `servers.metrics_exporter`, which Prometheus scrapes.

Pushed, because a run is several short processes on changing machines. Format: StatsD lines with
DogStatsD labels. Sending never blocks and never raises; without an address nothing is sent. A lost
datagram is missing from a curve only: results are in the store and in MLflow.
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
"""Environment variable: HOST:PORT of the exporter."""
STAGES = (
    *("validate", "priors", "train", "evaluate", "register"),
    *("gate", "promote", "sample", "report"),
)
NAMES = ()
"""Values of a label that holds names of registered models."""

Kind = Literal["counter", "gauge", "histogram"]
_LETTERS: Mapping[Kind, str] = {"counter": "c", "gauge": "g", "histogram": "h"}


class Metric(NamedTuple):
    """A metric of the exporter."""

    kind: Kind
    description: str
    labels: Mapping[str, tuple[str, ...]] = {}
    """Label -> its possible values, or `NAMES`."""


_OF_A_MODEL = {"model": NAMES}

METRICS: Mapping[str, Metric] = {
    "dreambooth_step": Metric("gauge", "steps done", _OF_A_MODEL),
    "dreambooth_steps_per_second": Metric(
        "gauge", "training steps per second, since the last point", _OF_A_MODEL
    ),
    "dreambooth_loss": Metric("gauge", "mean instance loss, since the last point", _OF_A_MODEL),
    "dreambooth_memory_bytes": Metric(
        "gauge",
        "peak memory of the first rank's device; without a GPU, of its process",
        _OF_A_MODEL,
    ),
    "dreambooth_checkpoint_stall_seconds_total": Metric(
        "counter", "time that training waited for checkpoints"
    ),
    "dreambooth_images_total": Metric(
        "counter", "sampled images: class images, evaluation, validation, samples, sampling jobs"
    ),
    "dreambooth_stages_total": Metric(
        "counter",
        "stages ended",
        {"stage": STAGES, "status": ("done", "reused", "skipped", "failed")},
    ),
    "dreambooth_stage_seconds": Metric(
        "histogram", "duration of stages that were not reused", {"stage": STAGES}
    ),
    "dreambooth_retries_total": Metric("counter", "tasks retried after a storage error"),
    "dreambooth_runs_total": Metric(
        "counter", "runs ended", {"state": ("done", "failed", "preempted")}
    ),
    "dreambooth_gate_decisions_total": Metric(
        "counter", "decisions of the gate", {"outcome": ("promote", "keep", "inconclusive")}
    ),
    "dreambooth_gpu_seconds_total": Metric("counter", "seconds times GPUs held by stages"),
    "dreambooth_gpu_seconds_saved_total": Metric("counter", "GPU seconds saved by reuse"),
}


def send(name: str, value: float, **labels: str) -> None:
    """Send a value of `METRICS`, for a counter the increment; NaN and infinity are dropped.

    Does nothing without an address, and never raises.
    """
    address = os.environ.get(ADDRESS)
    if address and math.isfinite(value) and (connection := _connection(address)):
        with suppress(OSError):
            connection.send(line(name, value, labels))


def line(name: str, value: float, labels: Mapping[str, str]) -> bytes:
    """`dreambooth_step:12|g|#model:robot`."""
    tags = ",".join(f"{label}:{word}" for label, word in labels.items())
    metric = f"{name}:{value:.12g}|{_LETTERS[METRICS[name].kind]}"
    return f"{metric}|#{tags}".encode() if tags else metric.encode()


@cache
def _connection(address: str) -> socket.socket | None:
    """A connected UDP socket; None for an invalid address, with one warning on stderr."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, _, _, peer = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        connection = socket.socket(family, kind)
        connection.connect(peer)
        connection.setblocking(False)
    except (OSError, UnicodeError) as error:
        print(
            f"no metrics are sent: {ADDRESS} is {address}, not HOST:PORT ({error})", file=sys.stderr
        )
        return None
    return connection
