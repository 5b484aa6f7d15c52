"""`compute.engine: ray`: the machines of a Ray cluster, which `RAY_ADDRESS` names, or else this
machine is one of.

Every machine has this project, the base model and access to the store of its own: credentials are in
the environment of its `ray start` and never travel. So is its work folder (see `paths_here`).
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
    failure_of,
    given_up,
    name_of,
    raise_failure,
)

LOOK_SECONDS = 1.0
KNOCK_SECONDS = 30.0


class _Worker:
    """What an actor is: a process of the cluster that keeps its model from piece to piece."""

    def do(self, name: str, piece: str) -> Failure | None:
        return failure_of(name, piece)


class _WorkQueue:
    """One call of `spread`: what waits, who works, and how often each piece was begun.

    Actors, not Ray's tasks: a task that is handed on to a machine that has just died may wait for
    it for ever (ray-project/ray#63405), while actors are placed by the cluster's head, which knows.
    """

    def __init__(self, ray: Any, compute: Compute, work: Work, pieces: Sequence[str]) -> None:
        self._ray = ray
        wants = {"num_cpus": 1, "num_gpus": int(compute.gpu), "scheduling_strategy": "SPREAD"}
        self._hands = ray.remote(**wants)(_Worker)
        self._name, self._pieces = name_of(work), pieces
        self._waiting = deque(range(len(pieces)))
        self._begun = Counter[int]()
        self.busy = dict[Any, tuple[Any, int]]()
        """Answer to come -> who works, and on which piece."""

    def hire(self) -> None:
        self._begin(self._hands.remote())

    def done(self) -> Iterator[int]:
        """Pieces that have ended by now, if any; raises what the work raised."""
        ready, _ = self._ray.wait([*self.busy], timeout=LOOK_SECONDS)
        for answer in ready:
            hand, piece = self.busy.pop(answer)
            try:
                failure = self._ray.get(answer)
            except self._ray.exceptions.RayError as error:
                if self._begun[piece] >= TRIES:
                    raise given_up(f"of {type(error).__name__}") from error
                self._ray.kill(hand)
                self._waiting.append(piece)
                self.hire()
                continue
            raise_failure(failure)
            yield piece
            self._begin(hand)

    def close(self) -> None:
        for hand, _ in self.busy.values():
            self._ray.kill(hand)

    def _begin(self, hand: Any) -> None:
        if not self._waiting:
            self._ray.kill(hand)
            return
        piece = self._waiting.popleft()
        self._begun[piece] += 1
        self.busy[hand.do.remote(self._name, self._pieces[piece])] = hand, piece


class Ray:
    """An actor for each worker, and another one where it dies."""

    shares_work_folder = False

    def run(
        self, compute: Compute, work: Work, pieces: Sequence[str], done: Callable[[int], None]
    ) -> None:
        with cluster() as ray, closing(_WorkQueue(ray, compute, work, pieces)) as shift:
            patience = _Patience(ray, compute)
            for _ in range(min(compute.workers, len(pieces))):
                shift.hire()
            while shift.busy:
                ended = 0
                for piece in shift.done():
                    done(piece)
                    ended += 1
                patience.look(ended > 0)


class _Patience:
    """Ends the waiting for a machine that the cluster does not have."""

    def __init__(self, ray: Any, compute: Compute) -> None:
        self._ray, self._compute = ray, compute
        self._share = {"CPU": 1, "GPU": 1} if compute.gpu else {"CPU": 1}
        self._since = time.monotonic()

    def look(self, went_on: bool) -> None:
        """Raises `StageFailed` once nothing has gone on for too long, and nobody could do it."""
        now = time.monotonic()
        if went_on:
            self._since = now
        if now - self._since > 60 * self._compute.startup_timeout_minutes and not self._has_room():
            needs = " and ".join(f"{need} {name}" for name, need in self._share.items())
            raise StageFailed(
                f"the Ray cluster had no machine with {needs} within compute.startup_timeout_minutes "
                f"{self._compute.startup_timeout_minutes:g}: start one, or set compute.gpu: false"
            )

    def _has_room(self) -> bool:
        return any(
            node["Alive"]
            and all(node["Resources"].get(name, 0) >= need for name, need in self._share.items())
            for node in self._ray.nodes()
        )


@contextmanager
def cluster() -> Iterator[Any]:
    """Ray, connected; its module, so that nobody else imports it before it is known to be there."""
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
    # what workers print, and Ray itself of machines that are gone, must not come out where `--json` is read
    with redirect_stdout(sys.stderr):
        _join(ray, os.environ.get("RAY_ADDRESS", "auto"))
        try:
            yield ray
        finally:
            ray.shutdown()


def _join(ray: Any, place: str) -> None:
    """Raises `StageFailed` where no cluster answers."""
    with _handler_kept():
        try:
            _knock(place)
            ray.init(address=place, log_to_driver=False, logging_level="WARNING")
        except (OSError, RuntimeError, ray.exceptions.RayError) as error:
            # a RuntimeError, where this machine is no node of the cluster that answers
            raise StageFailed(
                f"no Ray cluster takes us in at {place} ({type(error).__name__}): start one, as "
                "infra/README.md says, set RAY_ADDRESS (from outside of the cluster "
                "ray://HOST:10001), or set compute.engine: local"
            ) from error


def _knock(place: str) -> None:
    """Ray itself waits for minutes where nobody listens; raises `OSError` there."""
    host, _, port = place.rpartition(":")
    if port.isdecimal() and "://" not in host:
        socket.create_connection((host, int(port)), KNOCK_SECONDS).close()


@contextmanager
def _handler_kept() -> Iterator[None]:
    """Ray takes SIGTERM, which is Prefect's or the command line's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, ours)


ENGINE = Ray()
