"""Reasons to end a training before its last step: signal, stop file, time limit, stall."""

import faulthandler
import signal
import time
from pathlib import Path
from types import FrameType

STALLED = "Timeout ("
"""First words of the stack dump that the watchdog writes to the log."""


class Stop:
    """Returns the reason to stop, or an empty string; signal handlers only record the reason."""

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, file: Path, max_minutes: float | None) -> None:
        """`file` requests a stop by its existence; it is removed then."""
        self._file, self._reason = file, ""
        self._until = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._minutes = max_minutes
        self.install()

    def __call__(self) -> str:
        if not self._reason and self._file.exists():
            self._file.unlink(missing_ok=True)
            self._reason = f"the file {self._file} requested it"
        if not self._reason and self._until is not None and time.monotonic() > self._until:
            self._reason = f"checkpoints.max_minutes {self._minutes:g} are over"
        return self._reason

    def install(self) -> None:
        """Install the signal handlers, replacing Lightning's, which would end the process mid-step."""
        for number in self.signals:
            signal.signal(number, self._record)

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self._reason = self._reason or f"{signal.Signals(number).name} was received"


class Watchdog:
    """Ends the process, all stacks in its log, when `beat` was not called for `minutes`.

    `faulthandler` does it from a C thread without the interpreter lock, so that a process blocked
    inside a library is ended as well.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds, self._armed = 60 * minutes, 0.0
        self.beat()

    def beat(self) -> None:
        """Restart the timer."""
        now = time.monotonic()
        if now - self._armed > min(1.0, self._seconds / 10):
            self._armed = now
            faulthandler.dump_traceback_later(self._seconds, exit=True)

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()
