"""Adds up what all processes tell, and shows it to Prometheus.

`python -m dreambooth_core.servers.metrics_exporter` starts it.

One for all machines, and it lives longer than runs do: counters only grow, and a model of which
nothing is heard any more has no gauges. Of the core it needs `telemetry` alone.
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
"""After which a gauge is taken down, if nothing else is asked for: its training is over, or stuck."""
MOST_GAUGES = 4000
"""Of a thousand trainings at once; further ones are not shown."""
BUCKETS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14_400, 43_200)
"""Seconds of a stage."""

_LINE = re.compile(r"(\w+):(\d+(?:\.\d+)?(?:e[-+]\d+)?)\|[cgh](?:\|#(.*))?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KINDS: Mapping[Kind, Callable[..., Any]] = {
    "counter": Counter,
    "gauge": Gauge,
    "histogram": partial(Histogram, buckets=BUCKETS),
}
_VERBS: Mapping[Kind, str] = {"counter": "inc", "gauge": "set", "histogram": "observe"}


class MetricSample(NamedTuple):
    """A line, read."""

    name: str
    value: float
    words: tuple[str, ...]
    """Values of the metric's labels, in the order of `METRICS`."""


class MetricsRegistry:
    """Everything that was told, as Prometheus' library keeps it; counters begin at 0."""

    def __init__(self, silence: float = SILENCE_SECONDS) -> None:
        self._silence = silence
        self.registry = CollectorRegistry()
        self._shown = {name: self._collector(name, METRICS[name]) for name in METRICS}
        self._heard: dict[tuple[str, tuple[str, ...]], float] = {}

    def take(self, line: str, now: float) -> bool:
        """Count a line in; False for what stands not in `METRICS`, or is a gauge too many.

        `now` is in seconds of a clock that never goes back.
        """
        told = read(line)
        if told is None:
            return False
        kind, place = METRICS[told.name].kind, (told.name, told.words)
        if kind == "gauge":
            if place not in self._heard and len(self._heard) >= MOST_GAUGES:
                return False
            self._heard[place] = now
        shown = self._shown[told.name]
        getattr(shown.labels(*told.words) if told.words else shown, _VERBS[kind])(told.value)
        return True

    def forget(self, now: float) -> None:
        """Take down the gauges of which nothing was heard for too long."""
        silent = [place for place, at in self._heard.items() if now - at > self._silence]
        for name, words in silent:
            self._shown[name].remove(*words)
            del self._heard[name, words]

    def _collector(self, name: str, metric: Metric) -> Any:
        made = _KINDS[metric.kind](name, metric.what, [*metric.labels], registry=self.registry)
        # a counter that is first seen at 1 has not grown, as Prometheus sees it
        for words in product(*metric.labels.values()) if metric.labels else ():
            made.labels(*words)
        return made


def read(line: str) -> MetricSample | None:
    """A line of `telemetry.line`; None for one with another name, other labels or other values."""
    found = _LINE.fullmatch(line)
    metric = METRICS.get(found[1]) if found else None
    if found is None or metric is None:
        return None
    tags = dict(tag.partition(":")[::2] for tag in (found[3] or "").split(",") if tag)
    if tags.keys() != metric.labels.keys():
        return None
    words = tuple(tags[label] for label in metric.labels)
    fits = all(map(_is_value, words, metric.labels.values()))
    return MetricSample(found[1], float(found[2]), words) if fits else None


def _is_value(word: str, values: Iterable[str]) -> bool:
    return bool(_NAME.fullmatch(word)) if values == NAMES else word in values


def serve(board: MetricsRegistry, host: str, port: int, page: int) -> None:
    """Hear datagrams at `port` and show the board at `http://host:page/metrics`, for ever."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as ear:
        ear.bind(address)
        ear.settimeout(1.0)
        # last, so that whoever sees the page can tell something
        start_http_server(page, host, board.registry)
        print(f"hears at {host}:{port}, shows at {host}:{page}/metrics", file=sys.stderr)
        while True:
            _hear(board, ear)


def _hear(board: MetricsRegistry, ear: socket.socket) -> None:
    try:
        lines = ear.recv(65_536).decode(errors="replace").splitlines()
    except TimeoutError:
        lines = []
    now = time.monotonic()
    board.forget(now)
    for line in lines:
        if not board.take(line, now):
            print(f"not understood: {line[:200]!r}", file=sys.stderr)


def main() -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=9125, help="of the datagrams")
    parser.add_argument("--page", type=int, default=9102, help="port of Prometheus' page")
    parser.add_argument(
        "--silence", type=float, default=SILENCE_SECONDS, help="seconds that a gauge outlives"
    )
    asked = parser.parse_args()
    disable_created_metrics()  # type: ignore[no-untyped-call]
    serve(MetricsRegistry(asked.silence), asked.host, asked.port, asked.page)


if __name__ == "__main__":
    main()
