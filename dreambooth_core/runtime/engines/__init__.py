"""Engines run pieces of work in worker processes: one module per engine, each with an `ENGINE`.

Pieces of work are idempotent: they store results under create-once keys, so that any worker may
repeat any piece.
"""

import importlib
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol

from dreambooth_core import errors, plugins
from dreambooth_core.config.compute import Compute
from dreambooth_core.errors import DreamBoothError, StageFailed, one_line

TRIES = 3
"""Largest number of worker processes that may die during the same piece of work."""

Work = Callable[[str], None]
"""An idempotent module-level function of one JSON document."""


class Engine(Protocol):
    """Worker processes on this or other machines."""

    shares_work_folder: bool
    """Whether workers and this process have the same `paths.work`."""

    def run(
        self, compute: Compute, work: Work, pieces: Sequence[str], done: Callable[[int], None]
    ) -> None:
        """Run `work` on each piece in `compute.workers` processes; `done` gets each finished index.

        A piece whose worker died is repeated, up to `TRIES` times in all. Raises the errors of
        `work`, and `StageFailed`.
        """
        ...


def load_engine(name: str) -> Engine:
    """The engine of `engines/<name>.py`; raises `ConfigError` for a name without a file."""
    engine: Engine = plugins.load(__name__, name).ENGINE
    return engine


Failure = tuple[str, str]
"""Class name in `errors`, and message, of the error that a piece of work raised."""


def run_piece(name: str, piece: str) -> Failure | None:
    """Run a piece of work in this process; returns its error."""
    module, _, function = name.partition(":")
    try:
        getattr(importlib.import_module(module), function)(piece)
    except DreamBoothError as error:
        return type(error).__name__, str(error)
    except Exception as error:
        traceback.print_exc()
        return "StageFailed", f"{name} failed with {type(error).__name__}: {one_line(error)}"
    return None


def raise_failure(failure: Failure | None) -> None:
    """Raise a worker's error in this process; nothing for None."""
    if failure is not None:
        kind, sentence = failure
        raise getattr(errors, kind, StageFailed)(sentence)


def too_many_deaths(cause: str) -> StageFailed:
    """The error for a piece of work whose worker died `TRIES` times; `cause` of the last death."""
    return StageFailed(
        f"{TRIES} processes died during the same piece of work, the last {cause}: "
        "if memory is short, reduce compute.workers"
    )


def name_of(work: Work) -> str:
    """`module:function`, by which a worker process imports it."""
    return f"{work.__module__}:{work.__qualname__}"
