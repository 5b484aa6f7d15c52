"""A real exporter, and what Prometheus would get from it."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from dreambooth_core import telemetry
from dreambooth_core.servers.process import free_port

ROOT = Path(__file__).parent.parent
Labels = frozenset[tuple[str, str]]


@dataclass
class Exporter:
    """Where one listens."""

    page: int
    port: int
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """For whoever is to tell it something."""
        return {telemetry.ADDRESS: f"127.0.0.1:{self.port}"}

    def samples(self) -> dict[str, dict[Labels, float]]:
        """Name -> labels -> value, as Prometheus reads the page once all is heard that was told."""
        last = f"asked-{time.monotonic_ns()}"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
            mouth.sendto(
                telemetry.line("dreambooth_step", 1, {"model": last}), ("127.0.0.1", self.port)
            )
        asked = frozenset({("model", last)})
        deadline = time.monotonic() + 60
        while asked not in (found := self._read()).get("dreambooth_step", {}):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        steps = found.pop("dreambooth_step").items()
        real = {labels: value for labels, value in steps if "asked-" not in str(labels)}
        return {**found, "dreambooth_step": real} if real else found

    def now(self, name: str, **labels: str) -> float | None:
        """One sample's value on the page as it stands."""
        return self._read().get(name, {}).get(frozenset(labels.items()))

    def _read(self) -> dict[str, dict[Labels, float]]:
        from prometheus_client.parser import text_string_to_metric_families

        with urllib.request.urlopen(f"http://127.0.0.1:{self.page}/metrics") as answer:
            page = answer.read().decode()
        found: dict[str, dict[Labels, float]] = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                labels = frozenset(sample.labels.items())
                found.setdefault(sample.name, {})[labels] = sample.value
        return found

    def value(self, name: str, **labels: str) -> float | None:
        """One sample's value; None when it is not shown."""
        return self.samples().get(name, {}).get(frozenset(labels.items()))


@contextmanager
def hearing() -> Iterator[socket.socket]:
    """What is told while the block runs; whoever waits longer than 10 s for it gets an error."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear,
        pytest.MonkeyPatch.context() as us,
    ):
        ear.bind(("127.0.0.1", 0))
        ear.settimeout(10)
        us.setenv(telemetry.ADDRESS, f"127.0.0.1:{ear.getsockname()[1]}")
        yield ear


@contextmanager
def exporting(folder: Path) -> Iterator[Exporter]:
    """One that listens while the block runs."""
    page = free_port(1)
    there = Exporter(page, page + 1, folder / "exporter.log")
    words = ["--port", str(there.port), "--page", str(there.page), "--silence", "3600"]
    with there.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dreambooth_core.servers.metrics_exporter", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=log,
        )
    try:
        _wait(process, there)
        yield there
    finally:
        process.terminate()
        process.wait(30)


def _wait(process: "subprocess.Popen[bytes]", there: Exporter) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", there.page), 5):
            return
        time.sleep(0.1)
    raise AssertionError(there.log.read_text())
