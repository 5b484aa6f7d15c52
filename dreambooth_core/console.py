"""What a person sees of a run: a bar on a terminal, plain lines elsewhere; all on stderr."""

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
"""Told how far a stage is: done, total, and a word for people."""


QUIET_SECONDS = 10.0
"""Time between two plain lines."""


@contextmanager
def progress_bar(stage: str) -> Iterator[Progress]:
    """Give a `Progress` that draws on stderr."""
    if sys.stderr.isatty():
        with _bar(stage) as told:
            yield told
    else:
        yield _lines(stage)


def say(line: str) -> None:
    """One line for people."""
    print(line, file=sys.stderr, flush=True)


@functools.cache
def survive_closed_output() -> None:
    """From now on nothing ends because nobody reads what is printed; may be called again.

    A run prints into a pipe to Prefect's worker, and is to outlive it. With the pipe's other end gone,
    Prefect's own log lines would end the run, as would a library's progress bar.
    """
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                threading.Thread(target=_fall_silent, args=(descriptor,), daemon=True).start()


def _fall_silent(descriptor: int) -> None:
    """Once the reader is gone, whoever writes there, also a child, writes to nowhere."""
    waiting = select.poll()
    waiting.register(descriptor, 0)  # of errors one is told in any case
    waiting.poll()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


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

        def told(done: int, total: int, label: str) -> None:
            bar.update(line, completed=done, total=total, description=label, visible=True)

        yield told


def _lines(stage: str) -> Progress:
    last = time.monotonic()

    def told(done: int, total: int, label: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= QUIET_SECONDS:
            last = now
            say(f"{stage:>9}  {done}/{total}  {label}".rstrip())

    return told
