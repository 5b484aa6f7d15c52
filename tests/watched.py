"""A running metrics exporter, and its page as Prometheus parses it."""

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
    """Ports and log of an exporter."""

    page: int
    port: int
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of a process that sends it samples."""
        return {telemetry.ADDRESS: f"127.0.0.1:{self.port}"}

    def samples(self) -> dict[str, dict[Labels, float]]:
        """Name -> labels -> value of the page, after all samples sent before are received."""
        marker = f"marker-{time.monotonic_ns()}"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(
                telemetry.line("dreambooth_step", 1, {"model": marker}), ("127.0.0.1", self.port)
            )
        wanted = frozenset({("model", marker)})
        deadline = time.monotonic() + 60
        while wanted not in (found := self._read()).get("dreambooth_step", {}):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        steps = found.pop("dreambooth_step").items()
        real = {labels: value for labels, value in steps if "marker-" not in str(labels)}
        return {**found, "dreambooth_step": real} if real else found

    def now(self, name: str, **labels: str) -> float | None:
        """One sample's current value; None if it is not shown."""
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
        """One sample's value after all samples sent before are received; None if it is not shown."""
        return self.samples().get(name, {}).get(frozenset(labels.items()))


@contextmanager
def receiving() -> Iterator[socket.socket]:
    """A socket that receives samples sent within the block, with a timeout of 10 s."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        pytest.MonkeyPatch.context() as patch,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        patch.setenv(telemetry.ADDRESS, f"127.0.0.1:{receiver.getsockname()[1]}")
        yield receiver


@contextmanager
def exporting(folder: Path) -> Iterator[Exporter]:
    """An exporter that runs within the block."""
    page = free_port(1)
    exporter = Exporter(page, page + 1, folder / "exporter.log")
    arguments = ["--port", str(exporter.port), "--page", str(exporter.page), "--silence", "3600"]
    with exporter.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dreambooth_core.servers.metrics_exporter", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=log,
        )
    try:
        _wait(process, exporter)
        yield exporter
    finally:
        process.terminate()
        process.wait(30)


def _wait(process: "subprocess.Popen[bytes]", exporter: Exporter) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", exporter.page), 5):
            return
        time.sleep(0.1)
    raise AssertionError(exporter.log.read_text())
