"""Who runs: a state file per part, and a mark in the environment of every process of a stack.

A state file says which process is a part; the mark says that the process is ours, whatever became
of its number since, and finds what a killed part has left behind.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from dreambooth_core.storage.records import Record

MARK = "DREAMBOOTH_PART"
"""Variable of the environment: `<part>@<folder>`; children inherit it."""


class StartedService(Record):
    """A part that was started."""

    part: str
    fingerprint: str
    """Digest of its command and environment: another one cannot be adopted."""
    order: int
    """Its place among those that were started; they are stopped the other way round."""
    stop_signal: int
    grace: float
    """Seconds that it may take to stop."""
    pid: int = 0


def state_file(folder: Path, part: str) -> Path:
    return folder / "parts" / f"{part}.json"


def read(folder: Path, part: str) -> StartedService | None:
    """A part's state file; None without one, or with one that cannot be read."""
    try:
        return StartedService.model_validate_json(state_file(folder, part).read_bytes())
    except (OSError, ValidationError):
        return None


def read_all(folder: Path) -> list[StartedService]:
    """The state files that can be read, in the order of starting."""
    found = (read(folder, path.stem) for path in (folder / "parts").glob("*.json"))
    return sorted(filter(None, found), key=lambda started: started.order)


def lives(folder: Path, part: str, pid: int) -> bool:
    """Whether a process is there and that part, not another one that got its number since."""
    return _mark_of(pid) == mark(folder, part)


def mark(folder: Path, part: str) -> str:
    return f"{part}@{folder}"


def marked(folder: Path, part: str | None = None) -> list[int]:
    """The processes of a part, or of the whole stack: itself, its children and theirs."""
    import psutil

    end = mark(folder, part or "")
    return [
        pid
        for pid in psutil.pids()
        if (found := _mark_of(pid)) == end or (part is None and found.endswith(end))
    ]


def values_of(variable: str) -> set[str]:
    """What a variable of the environment holds, of all processes that have it."""
    import psutil

    return {_variable(pid, variable) for pid in psutil.pids()} - {""}


def stop(folder: Path, started: StartedService) -> None:
    """Ask a part's process group to end, then what is left of it; returns when nothing is."""
    if lives(folder, started.part, started.pid):
        _signal(-started.pid, started.stop_signal)
    for pid in _orphans(folder, started):
        _signal(pid, signal.SIGTERM)
    _gone(folder, started.part, started.grace)
    sweep(folder, started.part)
    state_file(folder, started.part).unlink(missing_ok=True)


def sweep(folder: Path, part: str | None = None, grace: float = 10.0) -> None:
    """End whatever carries the mark of a part, or of the stack: by SIGTERM, after `grace` SIGKILL."""
    for pid in marked(folder, part):
        _signal(pid, signal.SIGTERM)
    while not _gone(folder, part, grace):
        for pid in marked(folder, part):
            _signal(pid, signal.SIGKILL)
        grace = 1.0


def stop_all(folder: Path) -> None:
    """End every part in order, the last started first, and what they left behind."""
    for started in reversed(read_all(folder)):
        stop(folder, started)
    sweep(folder)


def _orphans(folder: Path, started: StartedService) -> list[int]:
    """What an earlier process of the part has left at work, such as a worker's runs."""
    import psutil

    ours = {*marked(folder, started.part)}
    found = []
    for pid in ours - {started.pid}:
        with suppress(psutil.Error):
            if psutil.Process(pid).ppid() not in ours:
                found.append(pid)
    return found


def _gone(folder: Path, part: str | None, seconds: float) -> bool:
    """Wait for the last process of a part; whether it went in time."""
    deadline = time.monotonic() + seconds
    while marked(folder, part):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _mark_of(pid: int) -> str:
    return _variable(pid, MARK)


def _variable(pid: int, name: str) -> str:
    """ "" for processes that are not there, not ours to look at, or ended and not collected."""
    import psutil

    try:
        return str(psutil.Process(pid).environ().get(name, ""))
    except psutil.Error:
        return ""


def _signal(pid: int, number: int) -> None:
    """To a process, or to the group of the negative number."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return
