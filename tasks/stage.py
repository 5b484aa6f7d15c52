"""Prefect tasks of stages: retries, GPU concurrency limit, progress artifact."""

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
"""Least time between two updates of a progress artifact."""
PAUSES = (1, 5, 15, 30)
"""Seconds before each retry; a killed Prefect server is restarted within 20."""
LEASE_SECONDS = 60.0
"""Time after which a killed run's slot of the GPU limit is free; Prefect's minimum."""

GPU = "gpu"
"""Name of the global concurrency limit, with one slot per GPU."""


def stage(name: str, *, gpu: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator for a Prefect task, to be called directly: SIGTERM reaches only the main thread.

    Prefect does not cache or persist its result: `stage_cache` does. It is retried only after a
    transient error of store or server. With `gpu`, it waits for a slot (see `gpu_slot`). It survives
    the end of the worker that started it.
    """
    as_task = task(
        name=name,
        retries=len(PAUSES),
        retry_delay_seconds=[*PAUSES],
        retry_condition_fn=_should_retry,
        cache_policy=NO_CACHE,
        persist_result=False,
    )

    def decorate(act: Callable[P, R]) -> Callable[P, R]:
        return as_task(_surviving(_with_gpu_slot(act) if gpu else act))

    return decorate


def _surviving(act: Callable[P, R]) -> Callable[P, R]:
    @wraps(act)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        survive_closed_output()
        return act(*args, **kwargs)

    return call


def _with_gpu_slot(act: Callable[P, R]) -> Callable[P, R]:
    @wraps(act)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with gpu_slot():
            return act(*args, **kwargs)

    return call


def subflow_result(state: State[R]) -> R:
    """End state of a subflow for the outer flow to return: same name, message and result.

    A subflow's own state, returned as it is, would be replaced by the state Completed. Raises what
    the subflow raised.
    """
    result = state.result()
    fresh: State[R] = Completed(name=state.name, message=state.message, data=result)
    # Prefect gives the caller of the outer flow the state's data
    return cast(R, fresh)


@contextmanager
def gpu_slot() -> Iterator[None]:
    """Hold one slot of the limit `gpu`; no wait if the server has no such limit.

    `prefect gcl create gpu --limit N` creates it, with N the number of GPUs that the workers share.
    The server of a single run has none. A failed renewal of the lease does not end a training.
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


def is_transient(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a task failed because a store or a Prefect server was temporarily unreachable."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, ConcurrencySlotAcquisitionError):
        error = error.__cause__
    return isinstance(error, StorageError | TransportError) and not isinstance(error, NotFound)


def _should_retry(task: Any, run: Any, state: Any) -> bool:
    retry = is_transient(task, run, state)
    if retry:
        telemetry.send("dreambooth_retries_total", 1)
    return retry


@contextmanager
def progress_artifact(name: str) -> Iterator[Progress]:
    """A `Progress` that updates the terminal and a progress artifact in Prefect."""
    with progress_bar(name) as on_terminal:
        artifact: Any = None
        published_at = 0.0

        def report(done: int, total: int, label: str) -> None:
            nonlocal artifact, published_at
            on_terminal(done, total, label)
            now = time.monotonic()
            if now - published_at < ARTIFACT_SECONDS and done < total:
                return
            published_at = now
            artifact = _publish(
                artifact, name, 100 * done / max(total, 1), f"{label} {done}/{total}"
            )

        yield report


def _publish(artifact: Any, name: str, percent: float, description: str) -> Any:
    """An error of Prefect's server is logged and does not fail the run."""
    try:
        if artifact is None:
            key = f"{name}-progress"
            return create_progress_artifact(percent, key=key, description=description)
        update_progress_artifact(artifact, percent, description=description)
    except Exception as error:
        get_run_logger().warning("progress was not published: %s", error)
    return artifact
