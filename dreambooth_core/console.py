"""Progress and messages on stderr: a bar on a terminal, plain lines elsewhere."""

import functools
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Progress = Callable[[int, int, str], None]
"""Progress callback: items done, items in total, label."""
QUIET_SECONDS = 10.0
"""Shortest time between two plain lines."""


def labelled(progress: Progress | None, label: str) -> Progress | None:
    """`progress` with `label` before each of its labels; None for None."""
    if progress is None:
        return None
    return lambda done, total, what: progress(done, total, f"{label}: {what}" if what else label)


@contextmanager
def progress_bar(stage: str) -> Iterator[Progress]:
    """A progress callback that prints to stderr while the block runs."""
    if sys.stderr.isatty():
        with _bar(stage) as progress:
            yield progress
    else:
        yield _lines(stage)


def say(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr, flush=True)


@functools.cache
def survive_closed_output() -> None:
    """Redirect stdout and stderr to /dev/null once their pipe is closed; idempotent.

    A run writes to a pipe of Prefect's worker and must outlive it: with the pipe closed, a log line of
    Prefect's or a progress bar would raise `BrokenPipeError`.
    """
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                threading.Thread(
                    target=_redirect_when_closed, args=(descriptor,), daemon=True
                ).start()


def _redirect_when_closed(descriptor: int) -> None:
    """Wait until the pipe has no reader, then redirect it, also for child processes."""
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are reported for any mask
    poll.poll()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


@contextmanager
def _bar(stage: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("[bold]{task.fields[stage]:>9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.description}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("", total=None, stage=stage, visible=False)

        def progress(done: int, total: int, label: str) -> None:
            bar.update(line, completed=done, total=total, description=label, visible=True)

        yield progress


def _lines(stage: str) -> Progress:
    last = time.monotonic()

    def progress(done: int, total: int, label: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= QUIET_SECONDS:
            last = now
            say(f"{stage:>9}  {done}/{total}  {label}".rstrip())

    return progress
