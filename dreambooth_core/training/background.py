"""A repeated job in a background thread."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from dreambooth_core.errors import StageFailed


class Background:
    """Runs one job per request in a thread; requests that wait for the same run are merged.

    `StageFailed` and `OSError` of the job are printed: training continues without it.
    """

    def __init__(self, job: Callable[[], None], name: str) -> None:
        self._job, self._name = job, name
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._lock = threading.Lock()
        self._requested = False
        self._running: Future[None] | None = None

    def request(self) -> None:
        """Run the job soon, and once more if it is running now."""
        with self._lock:
            self._requested = True
            if self._running is None or self._running.done():
                self._running = self._pool.submit(self._drain)

    def close(self) -> None:
        """Wait until every request is served."""
        self._pool.shutdown(wait=True)

    def _drain(self) -> None:
        for _ in self._requests():
            try:
                self._job()
            except (StageFailed, OSError) as error:
                print(f"{self._name} failed: {error}", flush=True)

    def _requests(self) -> Iterator[None]:
        while True:
            with self._lock:
                if not self._requested:
                    self._running = None
                    return
                self._requested = False
            yield
