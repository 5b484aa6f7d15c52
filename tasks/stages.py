"""How a stage is promised to Prefect: what is tried again, and what a person sees meanwhile."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from dreambooth_core.console import progress_bar
from dreambooth_core.errors import NotFound, StorageError
from dreambooth_core.records import Progress

P = ParamSpec("P")
R = TypeVar("R")

ARTIFACT_SECONDS = 2.0
"""Time between two updates of a progress artifact."""


def stage(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A Prefect task, called directly and never submitted: SIGTERM reaches only the main thread.

    Prefect neither caches nor keeps its result: `dreambooth_core.stages.once` knows what is there.
    Tried again only when the store had a hiccup.
    """
    return task(
        name=name,
        retries=2,
        retry_delay_seconds=[1, 5],
        retry_condition_fn=is_hiccup,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


def is_hiccup(_task: Any, _run: Any, state: Any) -> bool:
    """Whether the failure came from a store that may answer in a moment."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StorageError) and not isinstance(error, NotFound)


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
