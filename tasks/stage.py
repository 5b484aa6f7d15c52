"""How a stage is promised to Prefect: what is tried again, and what a person sees meanwhile."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from httpx import TransportError
from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Completed

from dreambooth_core import telemetry
from dreambooth_core.console import Progress, progress_bar, survive_closed_output
from dreambooth_core.errors import NotFound, StorageError

P = ParamSpec("P")
R = TypeVar("R")

ARTIFACT_SECONDS = 2.0
"""Time between two updates of a progress artifact."""
PAUSES = (1, 5, 15, 30)
"""Seconds before each retry of a stage: a Prefect server that was killed is back after 20."""
LEASE_SECONDS = 60.0
"""After which a place on a GPU is free again that a killed run has held; the least Prefect takes."""

GPU = "gpu"
"""Name of the global concurrency limit that keeps a GPU from being booked twice."""


def stage(name: str, *, gpu: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A Prefect task, called directly and never submitted: SIGTERM reaches only the main thread.

    Prefect neither caches nor keeps its result: `stage_cache.once` knows what is there.
    Tried again only when store or server had a hiccup. With `gpu`, it waits for its turn (see `booked`).
    It goes on when the worker that started its run is gone.
    """
    promised = task(
        name=name,
        retries=len(PAUSES),
        retry_delay_seconds=[*PAUSES],
        retry_condition_fn=_tries_again,
        cache_policy=NO_CACHE,
        persist_result=False,
    )

    def promise(act: Callable[P, R]) -> Callable[P, R]:
        return promised(_outliving(_in_turn(act) if gpu else act))

    return promise


def _outliving(act: Callable[P, R]) -> Callable[P, R]:
    @wraps(act)
    def going_on(*args: P.args, **kwargs: P.kwargs) -> R:
        survive_closed_output()
        return act(*args, **kwargs)

    return going_on


def _in_turn(act: Callable[P, R]) -> Callable[P, R]:
    @wraps(act)
    def waiting(*args: P.args, **kwargs: P.kwargs) -> R:
        with booked():
            return act(*args, **kwargs)

    return waiting


def passed_on(state: State[R]) -> R:
    """How a flow within a flow ended, for the outer one to return: the same name, words and result.

    Prefect takes the inner one's own state for one of many, and calls the outer one Completed.
    Raises what the inner one raised.
    """
    result = state.result()
    fresh: State[R] = Completed(name=state.name, message=state.message, data=result)
    # whoever calls the outer flow gets the state's data
    return cast(R, fresh)


@contextmanager
def booked() -> Iterator[None]:
    """Hold one place of the limit `gpu`, where the server has one; without it, nobody waits.

    `prefect gcl create gpu --limit 1` makes it, for as many GPUs as the workers share. The server
    of a single run has none. A lease that cannot be renewed for a moment does not end a training.
    """
    if not _has_limit():
        yield
        return
    with concurrency(
        GPU,
        occupy=1,
        strict=True,
        lease_duration=LEASE_SECONDS,
        raise_on_lease_renewal_failure=False,
    ):
        yield


def _has_limit() -> bool:
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(GPU)
        except ObjectNotFound:
            return False
    return True


def is_hiccup(_task: Any, _run: Any, state: Any) -> bool:
    """Whether the failure came from a store, or a Prefect server, that may answer in a moment."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, ConcurrencySlotAcquisitionError):
        error = error.__cause__
    hiccup = isinstance(error, StorageError | TransportError)
    return hiccup and not isinstance(error, NotFound)


def _tries_again(task: Any, run: Any, state: Any) -> bool:
    again = is_hiccup(task, run, state)
    if again:
        telemetry.send("dreambooth_retries_total", 1)
    return again


@contextmanager
def progress_shown(name: str) -> Iterator[Progress]:
    """A `Progress` for the terminal and for a progress artifact in Prefect."""
    with progress_bar(name) as on_terminal:
        artifact: Any = None
        told_at = 0.0

        def told(done: int, total: int, label: str) -> None:
            nonlocal artifact, told_at
            on_terminal(done, total, label)
            now = time.monotonic()
            if now - told_at < ARTIFACT_SECONDS and done < total:
                return
            told_at = now
            artifact = _publish(
                artifact, name, 100 * done / max(total, 1), f"{label} {done}/{total}"
            )

        yield told


def _publish(artifact: Any, name: str, percent: float, description: str) -> Any:
    """Prefect's busy sqlite file is no reason to lose a training run."""
    try:
        if artifact is None:
            key = f"{name}-progress"
            return create_progress_artifact(percent, key=key, description=description)
        update_progress_artifact(artifact, percent, description=description)
    except Exception as error:
        get_run_logger().warning("progress was not published: %s", error)
    return artifact
