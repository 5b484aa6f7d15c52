"""Why a training ends before its last step: it is asked to, its time is over, or it stalls."""

import faulthandler
import signal
import time
from pathlib import Path
from types import FrameType

STALLED = "Timeout ("
"""How the dump of the stacks begins that the watchdog leaves in the log."""


class Stop:
    """Answers why to stop, or nothing; the handlers only raise a flag, however often they are called."""

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, file: Path, max_minutes: float | None) -> None:
        """`file`: its existence is an order to stop, which obeying it removes."""
        self._file, self._reason = file, ""
        self._until = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._minutes = max_minutes
        self.install()

    def __call__(self) -> str:
        if not self._reason and self._file.exists():
            self._file.unlink(missing_ok=True)
            self._reason = f"the file {self._file} asked for it"
        if not self._reason and self._until is not None and time.monotonic() > self._until:
            self._reason = f"checkpoints.max_minutes {self._minutes:g} are over"
        return self._reason

    def install(self) -> None:
        """Take the signals, from Lightning too, whose own handler ends the process midway."""
        for number in self.signals:
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._reason = self._reason or f"{signal.Signals(number).name} was received"


class Watchdog:
    """Ends the process with all stacks in its log when nobody calls `beat` for so long.

    The interpreter's own watchdog thread does it, which needs neither its lock nor its help: a
    process that hangs inside a library is ended as well.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds, self._armed = 60 * minutes, 0.0
        self.beat()

    def beat(self) -> None:
        now = time.monotonic()
        if now - self._armed > min(1.0, self._seconds / 10):
            self._armed = now
            faulthandler.dump_traceback_later(self._seconds, exit=True)

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()
