"""Aggregates the metrics of all processes and exports them to Prometheus.

Start it with `python -m dreambooth_core.servers.metrics_exporter`.

One exporter serves all machines and outlives runs: counters only grow, and gauges without updates are
removed.
"""

import argparse
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)

from dreambooth_core.telemetry import METRICS, NAMES, Kind, Metric

SILENCE_SECONDS = 120.0
"""Default time without updates after which a gauge is removed."""
MOST_GAUGES = 4000
"""Most gauges, about a thousand trainings; further ones are ignored."""
BUCKETS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14_400, 43_200)
"""Histogram buckets of stage durations, in seconds."""

_LINE = re.compile(r"(\w+):(\d+(?:\.\d+)?(?:e[-+]\d+)?)\|[cgh](?:\|#(.*))?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KINDS: Mapping[Kind, Callable[..., Any]] = {
    "counter": Counter,
    "gauge": Gauge,
    "histogram": partial(Histogram, buckets=BUCKETS),
}
_VERBS: Mapping[Kind, str] = {"counter": "inc", "gauge": "set", "histogram": "observe"}


class MetricSample(NamedTuple):
    """A parsed line."""

    name: str
    value: float
    labels: tuple[str, ...]
    """Values of the labels, in the order of `METRICS`."""


class MetricsRegistry:
    """The received metrics as Prometheus collectors; counters start at 0."""

    def __init__(self, max_age: float = SILENCE_SECONDS) -> None:
        self._max_age = max_age
        self.registry = CollectorRegistry()
        self._collectors = {name: self._collector(name, METRICS[name]) for name in METRICS}
        self._updated: dict[tuple[str, tuple[str, ...]], float] = {}

    def add(self, line: str, now: float) -> bool:
        """Add a line; False if it is invalid, or a gauge beyond `MOST_GAUGES`.

        `now`: seconds of a monotonic clock.
        """
        sample = read(line)
        if sample is None:
            return False
        kind, series = METRICS[sample.name].kind, (sample.name, sample.labels)
        if kind == "gauge":
            if series not in self._updated and len(self._updated) >= MOST_GAUGES:
                return False
            self._updated[series] = now
        metric = self._collectors[sample.name]
        child = metric.labels(*sample.labels) if sample.labels else metric
        getattr(child, _VERBS[kind])(sample.value)
        return True

    def expire(self, now: float) -> None:
        """Remove the gauges without an update for too long."""
        expired = [series for series, at in self._updated.items() if now - at > self._max_age]
        for name, labels in expired:
            self._collectors[name].remove(*labels)
            del self._updated[name, labels]

    def _collector(self, name: str, metric: Metric) -> Any:
        collector = _KINDS[metric.kind](
            name, metric.description, [*metric.labels], registry=self.registry
        )
        # Prometheus sees no increase in a counter whose first sample is 1
        for values in product(*metric.labels.values()) if metric.labels else ():
            collector.labels(*values)
        return collector


def read(line: str) -> MetricSample | None:
    """Parse a line of `telemetry.line`; None for an unknown name, label or label value."""
    found = _LINE.fullmatch(line)
    metric = METRICS.get(found[1]) if found else None
    if found is None or metric is None:
        return None
    tags = dict(tag.partition(":")[::2] for tag in (found[3] or "").split(",") if tag)
    if tags.keys() != metric.labels.keys():
        return None
    labels = tuple(tags[label] for label in metric.labels)
    is_valid = all(map(_is_value, labels, metric.labels.values()))
    return MetricSample(found[1], float(found[2]), labels) if is_valid else None


def _is_value(word: str, values: Iterable[str]) -> bool:
    return bool(_NAME.fullmatch(word)) if values == NAMES else word in values


def serve(metrics: MetricsRegistry, host: str, port: int, page: int) -> None:
    """Receive datagrams at `port` and serve `http://host:page/metrics` until a signal ends it."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as receiver:
        receiver.bind(address)
        receiver.settimeout(1.0)
        # last, so that datagrams are received once the page is up
        start_http_server(page, host, metrics.registry)
        print(f"receives at {host}:{port}, serves {host}:{page}/metrics", file=sys.stderr)
        while True:
            _receive(metrics, receiver)


def _receive(metrics: MetricsRegistry, receiver: socket.socket) -> None:
    try:
        lines = receiver.recv(65_536).decode(errors="replace").splitlines()
    except TimeoutError:
        lines = []
    now = time.monotonic()
    metrics.expire(now)
    for line in lines:
        if not metrics.add(line, now):
            print(f"invalid metric: {line[:200]!r}", file=sys.stderr)


def main() -> None:
    """Parse the options and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=9125, help="UDP port of the datagrams")
    parser.add_argument("--page", type=int, default=9102, help="HTTP port of /metrics")
    parser.add_argument(
        "--silence",
        type=float,
        default=SILENCE_SECONDS,
        help="seconds without updates after which a gauge is removed",
    )
    options = parser.parse_args()
    disable_created_metrics()  # type: ignore[no-untyped-call]
    serve(MetricsRegistry(options.silence), options.host, options.port, options.page)


if __name__ == "__main__":
    main()
