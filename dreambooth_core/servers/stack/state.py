"""Processes of a stack: a state file per service, and a mark in every process's environment.

The state file has the process id of a service. The mark verifies that the process with that id is the
service, and finds the child processes of a killed one.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from dreambooth_core.storage.records import Record

MARK = "DREAMBOOTH_SERVICE"
"""Environment variable: `<service>@<folder>`; inherited by child processes."""


class StartedService(Record):
    """A started service."""

    service: str
    fingerprint: str
    """`Service.fingerprint` at its start."""
    position: int
    """Index in the order of starting; services are stopped in reverse order."""
    stop_signal: int
    grace: float
    """Longest stop, in seconds."""
    pid: int = 0


def state_file(folder: Path, service: str) -> Path:
    return folder / "services" / f"{service}.json"


def read(folder: Path, service: str) -> StartedService | None:
    """The state file of a service; None if it is missing or damaged."""
    try:
        return StartedService.model_validate_json(state_file(folder, service).read_bytes())
    except (OSError, ValidationError):
        return None


def read_all(folder: Path) -> list[StartedService]:
    """All readable state files, in the order of starting."""
    found = (read(folder, path.stem) for path in (folder / "services").glob("*.json"))
    return sorted(filter(None, found), key=lambda started: started.position)


def is_running(folder: Path, service: str, pid: int) -> bool:
    """Whether the process exists and is that service, not another process with a reused id."""
    return _mark_of(pid) == mark(folder, service)


def mark(folder: Path, service: str) -> str:
    return f"{service}@{folder}"


def marked(folder: Path, service: str | None = None) -> list[int]:
    """Ids of the processes of a service, or of the whole stack, descendants included."""
    import psutil

    end = mark(folder, service or "")
    return [
        pid
        for pid in psutil.pids()
        if (found := _mark_of(pid)) == end or (service is None and found.endswith(end))
    ]


def values_of(variable: str) -> set[str]:
    """Values of an environment variable in all processes of this user."""
    import psutil

    return {_variable(pid, variable) for pid in psutil.pids()} - {""}


def stop(folder: Path, started: StartedService) -> None:
    """Stop a service and the processes it left behind; returns when all have ended."""
    if is_running(folder, started.service, started.pid):
        _signal(-started.pid, started.stop_signal)
    for pid in _orphans(folder, started):
        _signal(pid, signal.SIGTERM)
    _wait_until_gone(folder, started.service, started.grace)
    sweep(folder, started.service)
    state_file(folder, started.service).unlink(missing_ok=True)


def sweep(folder: Path, service: str | None = None, grace: float = 10.0) -> None:
    """Stop all marked processes of a service or the stack: SIGTERM, after `grace` seconds SIGKILL."""
    for pid in marked(folder, service):
        _signal(pid, signal.SIGTERM)
    while not _wait_until_gone(folder, service, grace):
        for pid in marked(folder, service):
            _signal(pid, signal.SIGKILL)
        grace = 1.0


def stop_all(folder: Path) -> None:
    """Stop all services in reverse order of starting, then all remaining marked processes."""
    for started in reversed(read_all(folder)):
        stop(folder, started)
    sweep(folder)


def _orphans(folder: Path, started: StartedService) -> list[int]:
    """Processes that an earlier process of the service left behind, such as a worker's runs."""
    import psutil

    processes = {*marked(folder, started.service)}
    found = []
    for pid in processes - {started.pid}:
        with suppress(psutil.Error):
            if psutil.Process(pid).ppid() not in processes:
                found.append(pid)
    return found


def _wait_until_gone(folder: Path, service: str | None, seconds: float) -> bool:
    """Wait for the processes of a service to end; False after `seconds`."""
    deadline = time.monotonic() + seconds
    while marked(folder, service):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _mark_of(pid: int) -> str:
    return _variable(pid, MARK)


def _variable(pid: int, name: str) -> str:
    """Value in the process's environment; empty if unset, or if the process is unreadable or gone."""
    import psutil

    try:
        return str(psutil.Process(pid).environ().get(name, ""))
    except psutil.Error:
        return ""


def _signal(pid: int, number: int) -> None:
    """Send a signal to a process, or to a process group by its negated id."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return
