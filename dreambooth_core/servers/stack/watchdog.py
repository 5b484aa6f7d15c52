"""Watchdog of one service: starts or takes over, checks and restarts it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

from dreambooth_core.errors import DreamBoothError
from dreambooth_core.runtime.processes import end_of
from dreambooth_core.servers.process import is_free
from dreambooth_core.servers.stack import state
from dreambooth_core.servers.stack.service import Service
from dreambooth_core.servers.stack.services import inherited

Phase = Literal["waiting", "starting", "ready", "given up"]
TRIES = 4
"""Failed starts in a row after which a service is given up."""
LONGEST_PAUSE = 60.0
STEADY_SECONDS = 60.0
"""A service that was ready for this long is restarted without a pause."""
LOG_BYTES = 16 * 2**20
_LAUNCH = Path(__file__).with_name("exec.py")


class Watchdog:
    """Keeps one service up; `step` does not wait for it."""

    def __init__(
        self, folder: Path, service: Service, position: int, log: Callable[[str], None]
    ) -> None:
        self.service = service
        self.phase: Phase = "waiting"
        self.pid = 0
        self.error = ""
        """Why it is not ready; empty if nothing failed."""
        self._folder = folder
        self._position = position
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._failed_starts = 0
        self._failures = 0
        self._since = 0.0
        self._not_before = 0.0

    @property
    def log_file(self) -> Path:
        return self._folder / "logs" / f"{self.service.name}.log"

    def take_over(self, started: state.StartedService | None) -> None:
        """Adopt a service of an earlier supervisor if its fingerprint is the same, else stop it."""
        if started is None:
            # without a state file, the main process cannot be identified
            state.sweep(self._folder, self.service.name)
        elif not state.is_running(self._folder, started.service, started.pid):
            self._clear()
        elif started.fingerprint == self.service.fingerprint:
            self.pid, self.phase, self._since = started.pid, "starting", time.monotonic()
            self._log(
                f"{self.service.title}: process {self.pid} of an earlier supervisor is taken over"
            )
        else:
            self._log(
                f"{self.service.title}: process {started.pid} has other settings and is replaced"
            )
            state.stop(self._folder, started)

    def step(self, ready: Collection[str]) -> None:
        """Do the next action; `ready`: names of the services that are ready."""
        now = time.monotonic()
        if self.phase == "given up" or now < self._not_before:
            return
        if self.phase == "waiting":
            if set(self.service.after) <= set(ready):
                self._start(now)
        elif not self._is_running():
            self._clear()
            self._fail(f"ended; {end_of(self.log_file)}", now)
        elif self.phase == "starting":
            self._check(now)
        elif now - self._since > STEADY_SECONDS:
            self._failures = 0

    def _start(self, now: float) -> None:
        taken = [port for port in self.service.ports if not is_free(port)]
        if taken:
            self._fail(
                f"port {taken[0]} is used by another program: end it, or choose other ports "
                "with --port in a new --folder",
                now,
            )
            return
        try:
            self.service.prepare()
        except (DreamBoothError, OSError) as error:
            self._fail(str(error), now)
            return
        self._process = self._launch()
        self.pid, self.phase, self._since = self._process.pid, "starting", time.monotonic()

    def _launch(self) -> "subprocess.Popen[bytes]":
        folder, service = self._folder, self.service
        started = state.StartedService(
            service=service.name,
            fingerprint=service.fingerprint,
            position=self._position,
            stop_signal=service.stop_signal,
            grace=service.grace,
        )
        file = state.state_file(folder, service.name)
        for parent in (file.parent, self.log_file.parent):
            parent.mkdir(parents=True, exist_ok=True)
        if self.log_file.is_file() and self.log_file.stat().st_size > LOG_BYTES:
            os.replace(self.log_file, self.log_file.with_suffix(".log.1"))
        command = [sys.executable, "-I", "-S", str(_LAUNCH), str(file), started.model_dump_json()]
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                [*command, *service.command],
                env={**inherited(), **service.env, state.MARK: state.mark(folder, service.name)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=service.cwd,
                # Ctrl-C in the supervisor's terminal must not reach the service
                start_new_session=True,
            )

    def _check(self, now: float) -> None:
        if not self.service.is_up():
            if now - self._since > self.service.seconds:
                started = state.read(self._folder, self.service.name)
                if started is not None:
                    state.stop(self._folder, started)
                self._fail(
                    f"did not respond within {self.service.seconds:.0f} s; {end_of(self.log_file)}",
                    now,
                )
            return
        try:
            self.service.set_up()
        except (DreamBoothError, OSError) as error:
            self._fail(str(error), now, "starting")
            return
        self.phase, self.error, self._failed_starts, self._since = "ready", "", 0, time.monotonic()
        self._log(f"{self.service.title} is ready: {self.service.link}")

    def _fail(self, reason: str, now: float, then: Phase = "waiting") -> None:
        """Record the failure and schedule the next try after 1, 2, 4, ... 60 seconds."""
        self.error = reason
        self._failed_starts, self._failures = self._failed_starts + 1, self._failures + 1
        if self._failed_starts >= TRIES:
            self.phase = "given up"
            self._log(f"{self.service.title} is given up after {TRIES} failed starts: {reason}")
            return
        pause = min(2.0 ** (self._failures - 1), LONGEST_PAUSE)
        self.phase, self._not_before = then, now + pause
        self._log(f"{self.service.title} {reason}; next try in {pause:.0f} s")

    def _is_running(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        return state.is_running(self._folder, self.service.name, self.pid)

    def _clear(self) -> None:
        """Stop the child processes of an ended service, which may use its ports; not a worker's runs."""
        self._process, self.pid = None, 0
        if not self.service.children_outlive:
            state.sweep(self._folder, self.service.name)
