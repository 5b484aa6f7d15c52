"""One run under faults: what it is doing, what of it lives, and going on with it."""

import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from dreambooth_core.config import Config
from dreambooth_core.storage.stores import Store, open_store
from tests.chaos.proxy import Proxy
from tests.chaos.stages import Attempt
from tests.chaos.system import ENDED, System

LOOK_SECONDS = 0.02
"""Between two looks at the log: the shortest stage takes a tenth of a second."""
STATE_SECONDS = 0.5
"""Between two questions to Prefect for the run's state."""
COUNT_SECONDS = 5.0
"""Between two looks at all processes."""
IDLE_SECONDS = 90.0
"""Without any process of a run that has not ended, while the servers work: nobody comes any more."""
LEAVING_SECONDS = 30.0
"""That the processes of a run may take to end after it: the time of a cancelled one."""


class TimeIsUp(Exception):
    """The suite's own time; says nothing about the case."""


class Scene:
    """A run with a store, a work folder and a registered model of its own."""

    run: str
    attempt: Attempt

    def __init__(self, system: System, config: Config, proxy: Proxy, deadline: float) -> None:
        self.system, self.config, self.proxy = system, config, proxy
        self._deadline = deadline
        self._state, self._asked_at = "", 0.0
        self._counted_at, self._alive_at = 0.0, 0.0

    @property
    def store(self) -> Store:
        """Seen past the proxy."""
        storage = self.config.storage.model_copy(update={"endpoint": "local"})
        return open_store(storage)

    def start(self) -> None:
        self.run = self.system.start(self.config)
        self._begin()

    def retry(self) -> None:
        """Once: what a person does to a run that has failed."""
        self._begin()
        self.system.retry(self.run)

    def reach(self, stage: str) -> bool:
        """Wait until the stage is under way in this attempt; False when the run has stopped before."""
        self.until(lambda: self._has_begun() or self.has_stopped())
        return self.until(lambda: self._is_at(stage) or self.has_stopped()) and self._is_at(stage)

    def is_past(self, stage: str) -> bool:
        return self.attempt.is_over(stage)

    def state(self) -> str:
        """The last known type of the run's state, asked for now and then."""
        now = time.monotonic()
        if now - self._asked_at >= STATE_SECONDS:
            self._state = self.system.state(self.run) or self._state
            self._asked_at = now
        return self._state

    def has_ended(self) -> bool:
        return self.state() in ENDED

    def has_stopped(self) -> bool:
        """Whether it has ended, or nobody has worked on it for a while, though all servers work."""
        now = time.monotonic()
        if self.has_ended():
            return True
        if now - self._counted_at >= COUNT_SECONDS:
            self._counted_at = now
            if not self.system.is_whole() or self.processes():
                self._alive_at = now
        return now - self._alive_at > IDLE_SECONDS

    def processes(self) -> list[psutil.Process]:
        return self.system.processes(self.run)

    def left(self) -> list[str]:
        """The processes of the run that stay although it has ended."""
        deadline = time.monotonic() + LEAVING_SECONDS
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return [_named(process) for process in found]

    def until(self, condition: Callable[[], bool], every: float = LOOK_SECONDS) -> bool:
        """Wait for it; raises `TimeIsUp`."""
        while not condition():
            if time.monotonic() > self._deadline:
                raise TimeIsUp
            time.sleep(every)
        return True

    def clear(self) -> None:
        """Leave nothing of the run behind for the next one."""
        if self.system.state(self.run) not in ENDED:
            self.system.crash(self.run)
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _begin(self) -> None:
        self.attempt = Attempt(self.system, self.run)
        self._state, self._asked_at = "", 0.0
        self._alive_at = time.monotonic()

    def _has_begun(self) -> bool:
        return self.state() == "RUNNING" or bool(self.attempt.over())

    def _is_at(self, stage: str) -> bool:
        now = self.attempt.stage()
        return now == stage or (now != "" and self.is_past(stage))


def _named(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())[:200]
    return str(process.pid)
