"""`compute.engine: ray`: the machines of the Ray cluster at `RAY_ADDRESS`, by default this machine's.

Every machine has this project, the base model and access to the store. Credentials and the work
folder (see `paths_here`) are set in the environment of its `ray start` and are never transferred.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from typing import Any

from dreambooth_core.config import Compute
from dreambooth_core.errors import ConfigError, StageFailed
from dreambooth_core.runtime.engines import (
    TRIES,
    Failure,
    Work,
    name_of,
    raise_failure,
    run_piece,
    too_many_deaths,
)

WAIT_SECONDS = 1.0
CONNECT_SECONDS = 30.0


class _Worker:
    """Class of the actors: a process that keeps its loaded model between pieces of work."""

    def run(self, name: str, piece: str) -> Failure | None:
        return run_piece(name, piece)


class _WorkQueue:
    """The state of one `run`: waiting pieces, workers, and how often each piece was started.

    Actors instead of Ray's tasks: a task that is forwarded to a machine that has just died may wait
    forever (ray-project/ray#63405), while the cluster's head schedules actors on living machines.
    """

    def __init__(self, ray: Any, compute: Compute, work: Work, pieces: Sequence[str]) -> None:
        self._ray = ray
        resources = {"num_cpus": 1, "num_gpus": int(compute.gpu), "scheduling_strategy": "SPREAD"}
        self._actor_class = ray.remote(**resources)(_Worker)
        self._name, self._pieces = name_of(work), pieces
        self._waiting = deque(range(len(pieces)))
        self._starts = Counter[int]()
        self.busy = dict[Any, tuple[Any, int]]()
        """Pending result -> worker and index of its piece."""

    def add_worker(self) -> None:
        self._begin(self._actor_class.remote())

    def done(self) -> Iterator[int]:
        """Indices of pieces that finished within `WAIT_SECONDS`; raises the errors of the work."""
        ready, _ = self._ray.wait([*self.busy], timeout=WAIT_SECONDS)
        for result in ready:
            worker, piece = self.busy.pop(result)
            try:
                failure = self._ray.get(result)
            except self._ray.exceptions.RayError as error:
                if self._starts[piece] >= TRIES:
                    raise too_many_deaths(f"of {type(error).__name__}") from error
                self._ray.kill(worker)
                self._waiting.append(piece)
                self.add_worker()
                continue
            raise_failure(failure)
            yield piece
            self._begin(worker)

    def close(self) -> None:
        for worker, _ in self.busy.values():
            self._ray.kill(worker)

    def _begin(self, worker: Any) -> None:
        if not self._waiting:
            self._ray.kill(worker)
            return
        piece = self._waiting.popleft()
        self._starts[piece] += 1
        self.busy[worker.run.remote(self._name, self._pieces[piece])] = worker, piece


class Ray:
    """One actor per worker, replaced when it dies."""

    shares_work_folder = False

    def run(
        self, compute: Compute, work: Work, pieces: Sequence[str], done: Callable[[int], None]
    ) -> None:
        with cluster() as ray, closing(_WorkQueue(ray, compute, work, pieces)) as queue:
            timeout = _ResourceTimeout(ray, compute)
            for _ in range(min(compute.workers, len(pieces))):
                queue.add_worker()
            while queue.busy:
                finished = 0
                for piece in queue.done():
                    done(piece)
                    finished += 1
                timeout.check(finished > 0)


class _ResourceTimeout:
    """Timeout for resources that no machine of the cluster has."""

    def __init__(self, ray: Any, compute: Compute) -> None:
        self._ray, self._compute = ray, compute
        self._needed = {"CPU": 1, "GPU": 1} if compute.gpu else {"CPU": 1}
        self._since = time.monotonic()

    def check(self, progressed: bool) -> None:
        """Raises `StageFailed` after `compute.startup_timeout_minutes` without progress and room."""
        now = time.monotonic()
        if progressed:
            self._since = now
        if now - self._since > 60 * self._compute.startup_timeout_minutes and not self._has_room():
            needs = " and ".join(f"{need} {name}" for name, need in self._needed.items())
            raise StageFailed(
                f"the Ray cluster had no machine with {needs} within compute.startup_timeout_minutes "
                f"{self._compute.startup_timeout_minutes:g}: start one, or set compute.gpu: false"
            )

    def _has_room(self) -> bool:
        return any(
            node["Alive"]
            and all(node["Resources"].get(name, 0) >= need for name, need in self._needed.items())
            for node in self._ray.nodes()
        )


@contextmanager
def cluster() -> Iterator[Any]:
    """The module `ray`, connected to the cluster; raises `ConfigError` when it is not installed."""
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "compute.engine is 'ray' but Ray is not installed: "
            "`pip install 'dreambooth-factory[ray]'`, or set compute.engine: local"
        ) from None
    if ray.is_initialized():
        yield ray
        return
    # Ray and its workers print to stdout, which is reserved for `--json`
    with redirect_stdout(sys.stderr):
        _connect(ray, os.environ.get("RAY_ADDRESS", "auto"))
        try:
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    """Raises `StageFailed` when no cluster accepts this process."""
    with _restored_handler():
        try:
            _check_reachable(address)
            ray.init(address=address, log_to_driver=False, logging_level="WARNING")
        except (OSError, RuntimeError, ray.exceptions.RayError) as error:
            # RuntimeError: this machine is not a node of the cluster
            raise StageFailed(
                f"cannot connect to a Ray cluster at {address} ({type(error).__name__}): start one as "
                "described in infra/README.md, set RAY_ADDRESS (from outside of the cluster "
                "ray://HOST:10001), or set compute.engine: local"
            ) from error


def _check_reachable(address: str) -> None:
    """Raises `OSError` at once for a closed port, where `ray.init` would wait for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "://" not in host:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


@contextmanager
def _restored_handler() -> Iterator[None]:
    """Restores the SIGTERM handler of Prefect or the command line, which `ray.init` replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


ENGINE = Ray()
