"""One part: started or taken over, seen to work, started again when it died."""

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
"""Starts in vain, one after the other, before a part is given up."""
LONGEST_PAUSE = 60.0
STEADY_SECONDS = 60.0
"""A part that has worked for so long is started again without a pause."""
LOG_BYTES = 16 * 2**20
_LAUNCH = Path(__file__).with_name("exec.py")


class Watchdog:
    """Looks after one part; `step` never waits for it to come up."""

    def __init__(
        self, folder: Path, part: Service, order: int, tell: Callable[[str], None]
    ) -> None:
        self.part = part
        self.phase: Phase = "waiting"
        self.pid = 0
        self.error = ""
        """Why it is not ready, when something went wrong."""
        self._folder = folder
        self._order = order
        self._tell = tell
        self._ours: subprocess.Popen[bytes] | None = None
        self._vain = 0
        self._falls = 0
        self._since = 0.0
        self._not_before = 0.0

    @property
    def log(self) -> Path:
        return self._folder / "logs" / f"{self.part.name}.log"

    def take_over(self, started: state.StartedService | None) -> None:
        """Go on with the part that an earlier supervisor left, if it would be started alike."""
        if started is None:
            # of whatever is there, nobody can say which process is the part
            state.sweep(self._folder, self.part.name)
        elif not state.lives(self._folder, started.part, started.pid):
            self._clear()
        elif started.fingerprint == self.part.fingerprint:
            self.pid, self.phase, self._since = started.pid, "starting", time.monotonic()
            self._tell(f"{self.part.title}: process {self.pid} was left and is taken over")
        else:
            self._tell(f"{self.part.title}: process {started.pid} was started otherwise: replaced")
            state.stop(self._folder, started)

    def step(self, ready: Collection[str]) -> None:
        """Do what is next, given the names of the parts that work."""
        now = time.monotonic()
        if self.phase == "given up" or now < self._not_before:
            return
        if self.phase == "waiting":
            if set(self.part.after) <= set(ready):
                self._start(now)
        elif not self._lives():
            self._clear()
            self._fail(f"ended; {end_of(self.log)}", now)
        elif self.phase == "starting":
            self._look(now)
        elif now - self._since > STEADY_SECONDS:
            self._falls = 0

    def _start(self, now: float) -> None:
        taken = [port for port in self.part.ports if not is_free(port)]
        if taken:
            self._fail(
                f"port {taken[0]} is taken by another program: end it, or choose other ports "
                "with --port in a new --folder",
                now,
            )
            return
        try:
            self.part.make()
        except (DreamBoothError, OSError) as error:
            self._fail(str(error), now)
            return
        self._ours = self._launched()
        self.pid, self.phase, self._since = self._ours.pid, "starting", time.monotonic()

    def _launched(self) -> "subprocess.Popen[bytes]":
        folder, part = self._folder, self.part
        started = state.StartedService(
            part=part.name,
            fingerprint=part.fingerprint,
            order=self._order,
            stop_signal=part.stop_signal,
            grace=part.grace,
        )
        file = state.state_file(folder, part.name)
        for parent in (file.parent, self.log.parent):
            parent.mkdir(parents=True, exist_ok=True)
        if self.log.is_file() and self.log.stat().st_size > LOG_BYTES:
            os.replace(self.log, self.log.with_suffix(".log.1"))
        launch = [sys.executable, "-I", "-S", str(_LAUNCH), str(file), started.model_dump_json()]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*launch, *part.command],
                env={**inherited(), **part.env, state.MARK: state.mark(folder, part.name)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=part.cwd,
                # a Ctrl-C in the supervisor's terminal is the supervisor's alone
                start_new_session=True,
            )

    def _look(self, now: float) -> None:
        if not self.part.answers():
            if now - self._since > self.part.seconds:
                started = state.read(self._folder, self.part.name)
                if started is not None:
                    state.stop(self._folder, started)
                self._fail(
                    f"did not answer within {self.part.seconds:.0f} s; {end_of(self.log)}", now
                )
            return
        try:
            self.part.settle()
        except (DreamBoothError, OSError) as error:
            self._fail(str(error), now, "starting")
            return
        self.phase, self.error, self._vain, self._since = "ready", "", 0, time.monotonic()
        self._tell(f"{self.part.title} is ready: {self.part.link}")

    def _fail(self, reason: str, now: float, then: Phase = "waiting") -> None:
        """Note it, and wait a while: 1 s, 2 s, 4 s and so on up to a minute."""
        self.error = reason
        self._vain, self._falls = self._vain + 1, self._falls + 1
        if self._vain >= TRIES:
            self.phase = "given up"
            self._tell(f"{self.part.title} is given up after {TRIES} starts in vain: {reason}")
            return
        pause = min(2.0 ** (self._falls - 1), LONGEST_PAUSE)
        self.phase, self._not_before = then, now + pause
        self._tell(f"{self.part.title} {reason}; tried again in {pause:.0f} s")

    def _lives(self) -> bool:
        if self._ours is not None:
            return self._ours.poll() is None
        return state.lives(self._folder, self.part.name, self.pid)

    def _clear(self) -> None:
        """What a part that ended has left behind would hold its ports; a worker's runs go on."""
        self._ours, self.pid = None, 0
        if not self.part.leaves_work:
            state.sweep(self._folder, self.part.name)
