"""Control and observation of one run: start, retry, stage, state, processes."""

import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from dreambooth_core.config import Config
from dreambooth_core.storage.stores import Store, open_store
from tests.chaos.proxy import Proxy
from tests.chaos.stages import Attempt
from tests.chaos.system import ENDED, System

POLL_SECONDS = 0.02
"""Interval for reading the log; the shortest stage takes 0.1 s."""
STATE_SECONDS = 0.5
"""Interval for requesting the run's state from Prefect."""
COUNT_SECONDS = 5.0
"""Interval for listing processes."""
IDLE_SECONDS = 90.0
"""A run without processes for this time, while all servers are up, counts as stuck."""
LEAVING_SECONDS = 30.0
"""Time limit for a run's processes to end after it, as for a cancelled one."""


class TimeIsUp(Exception):
    """The suite's deadline has passed."""


class Scene:
    """A run with its own store, work folder and registered model."""

    run: str
    attempt: Attempt

    def __init__(self, system: System, config: Config, proxy: Proxy, deadline: float) -> None:
        self.system, self.config, self.proxy = system, config, proxy
        self._deadline = deadline
        self._state, self._asked_at = "", 0.0
        self._counted_at, self._alive_at = 0.0, 0.0

    @property
    def store(self) -> Store:
        """The run's store, without the proxy."""
        storage = self.config.storage.model_copy(update={"endpoint": "local"})
        return open_store(storage)

    def start(self) -> None:
        self.run = self.system.start(self.config)
        self._begin()

    def retry(self) -> None:
        """Retry a failed run, as by the UI."""
        self._begin()
        self.system.retry(self.run)

    def reach(self, stage: str) -> bool:
        """Wait until the stage is running in this attempt; False if the run stopped before."""
        self.until(lambda: self._has_begun() or self.has_stopped())
        return self.until(lambda: self._is_at(stage) or self.has_stopped()) and self._is_at(stage)

    def is_past(self, stage: str) -> bool:
        return self.attempt.is_over(stage)

    def state(self) -> str:
        """Last known type of the run's state, requested at intervals."""
        now = time.monotonic()
        if now - self._asked_at >= STATE_SECONDS:
            self._state = self.system.state(self.run) or self._state
            self._asked_at = now
        return self._state

    def has_ended(self) -> bool:
        return self.state() in ENDED

    def has_stopped(self) -> bool:
        """Whether the run has ended, or had no process for a while although all servers are up."""
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
        """Processes of the run that do not end after it."""
        deadline = time.monotonic() + LEAVING_SECONDS
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return [_named(process) for process in found]

    def until(self, condition: Callable[[], bool], every: float = POLL_SECONDS) -> bool:
        """Wait for the condition; raises `TimeIsUp` at the deadline."""
        while not condition():
            if time.monotonic() > self._deadline:
                raise TimeIsUp
            time.sleep(every)
        return True

    def clear(self) -> None:
        """End the run and kill its processes."""
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
