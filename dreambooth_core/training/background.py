"""A job repeated in a thread behind the training."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from dreambooth_core.errors import StageFailed


class Background:
    """Does one job again and again behind the training; asked twice while it waits, it does it once.

    Errors are printed, since the training goes on without what the job is for.
    """

    def __init__(self, job: Callable[[], None], name: str) -> None:
        self._job, self._name = job, name
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._lock = threading.Lock()
        self._asked = False
        self._running: Future[None] | None = None

    def ask(self) -> None:
        """Let the job be done soon, once more if it is being done."""
        with self._lock:
            self._asked = True
            if self._running is None or self._running.done():
                self._running = self._pool.submit(self._drain)

    def close(self) -> None:
        """Wait until everything that was asked for is done."""
        self._pool.shutdown(wait=True)

    def _drain(self) -> None:
        for _ in self._taken():
            try:
                self._job()
            except (StageFailed, OSError) as error:
                print(f"{self._name} failed: {error}", flush=True)

    def _taken(self) -> Iterator[None]:
        while True:
            with self._lock:
                if not self._asked:
                    self._running = None
                    return
                self._asked = False
            yield
