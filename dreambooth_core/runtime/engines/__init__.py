"""Who works besides this process: one engine per file, one protocol, found by its name.

What is made is the same whoever makes it: pieces of work write what they make under create-once
keys, so that any worker can take over any piece.
A new engine is one new file here with `ENGINE`.
"""

import importlib
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol

from dreambooth_core import errors, plugins
from dreambooth_core.config.compute import Compute
from dreambooth_core.errors import DreamBoothError, StageFailed, one_line

TRIES = 3
"""So often a piece of work is begun again when the process that does it dies."""

Work = Callable[[str], None]
"""A plain function of a module, of one JSON document, that leaves the same when it is done twice."""


class Engine(Protocol):
    """Processes, here or elsewhere."""

    shares_work_folder: bool
    """Whether they share this process' work folder."""

    def run(
        self, compute: Compute, work: Work, pieces: Sequence[str], done: Callable[[int], None]
    ) -> None:
        """Have `work` done on each piece by `compute.workers` processes; `done` is told its number.

        What dies is begun again by others, `TRIES` times. Raises what the work raises, else
        `StageFailed`.
        """
        ...


def load_engine(name: str) -> Engine:
    """The engine of `engines/<name>.py`; raises `ConfigError` for a name without a file."""
    engine: Engine = plugins.load(__name__, name).ENGINE
    return engine


Failure = tuple[str, str]
"""How work ended that did not end well: the error's name in `errors`, and its sentence."""


def failure_of(name: str, piece: str) -> Failure | None:
    """Do a piece of work, in whatever process this is."""
    try:
        work_by(name)(piece)
    except DreamBoothError as error:
        return type(error).__name__, str(error)
    except Exception as error:
        traceback.print_exc()
        return "StageFailed", f"{name} broke with {type(error).__name__}: {one_line(error)}"
    return None


def raise_failure(failure: Failure | None) -> None:
    """Raise what the work raised, in the process that wants it; nothing when it ended well."""
    if failure is not None:
        kind, sentence = failure
        raise getattr(errors, kind, StageFailed)(sentence)


def given_up(how: str) -> StageFailed:
    """What to raise when the last try died too, and how it died."""
    return StageFailed(
        f"{TRIES} processes died over the same work, the last {how}: "
        "is there memory for compute.workers of them?"
    )


def name_of(work: Work) -> str:
    """What another process finds the function by."""
    return f"{work.__module__}:{work.__qualname__}"


def work_by(name: str) -> Work:
    """The function behind a name."""
    module, _, function = name.partition(":")
    work: Work = getattr(importlib.import_module(module), function)
    return work
