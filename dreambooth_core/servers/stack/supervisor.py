"""Supervisor of all services of a stack, one per folder; a killed one is replaced by the next."""

import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dreambooth_core.errors import StageFailed
from dreambooth_core.file_locks import try_lock
from dreambooth_core.servers import local
from dreambooth_core.servers.stack import state
from dreambooth_core.servers.stack.service import Service
from dreambooth_core.servers.stack.services import client_environment, environment, services_of
from dreambooth_core.servers.stack.settings import (
    FOLDER,
    StackLayout,
    read_settings,
    write_settings,
)
from dreambooth_core.servers.stack.watchdog import Phase, Watchdog
from dreambooth_core.storage.records import Record
from dreambooth_core.storage.stores import written_beside

STEP_SECONDS = 0.25
DOWN_SECONDS = 240.0
"""More than the longest stop of all services together."""


class ServiceState(Record):
    """State of a service."""

    title: str
    link: str
    phase: Phase
    pid: int
    error: str = ""


class StackState(Record):
    """State of a stack, written by its supervisor."""

    supervisor: int
    """Process id of the supervisor."""
    ready: bool
    """Whether all services are ready."""
    services: dict[str, ServiceState]


def supervise(
    layout: StackLayout, log: Callable[[str], None], ready: Callable[[StackState], None]
) -> None:
    """Start or take over all services and keep them up until SIGTERM, SIGHUP or Ctrl-C, then stop them.

    `ready` is called once, when all are ready. Raises `StageFailed` if a service does not start; the
    others are stopped then.
    """
    _state_file(layout.folder).unlink(missing_ok=True)
    services = services_of(layout)
    write_settings(layout)
    _write_environment(layout)
    with client_environment(layout), _stoppable():
        try:
            _run(layout, services, log, ready)
        except KeyboardInterrupt:
            log("stopping")
        finally:
            # if we are killed, `dreambooth down` stops the rest
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            state.stop_all(layout.folder)
            _state_file(layout.folder).unlink(missing_ok=True)


@contextmanager
def stack_environment(folder: Path = FOLDER) -> Iterator[None]:
    """Set the client environment of a running `up`, unless PREFECT_API_URL names another server.

    Enter it before importing prefect, which reads the environment at import.
    """
    home = folder.resolve()
    settings = None if os.environ.get("PREFECT_API_URL") else read_settings(home)
    if settings is None or not state.marked(home):
        yield
        return
    with client_environment(StackLayout(home, settings, Path.cwd())):
        yield


@contextmanager
def claimed(folder: Path, seconds: float = 2.0) -> Iterator[bool]:
    """Hold the supervisor's lock of the folder while the block runs; yields False if another has it.

    Waits up to `seconds`, because `stack_state` takes a shared lock briefly.
    """
    with (folder / "lock").open("a+") as file:
        deadline = time.monotonic() + seconds
        while not try_lock(file.fileno()):
            if time.monotonic() >= deadline:
                yield False
                return
            time.sleep(0.1)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield True


def stack_state(folder: Path) -> StackState | None:
    """The last state written by a live supervisor; None without one."""
    try:
        stack = StackState.model_validate_json(_state_file(folder).read_bytes())
        with (folder / "lock").open() as file:
            return None if try_lock(file.fileno(), shared=True) else stack
    except OSError:
        return None


def stop_stack(folder: Path) -> int:
    """Stop a stack, with or without a live supervisor; the number of its processes.

    Raises `StageFailed` if the supervisor does not stop.
    """
    if not folder.is_dir():
        return 0
    count = len(state.marked(folder))
    deadline = time.monotonic() + DOWN_SECONDS
    asked = False
    while True:
        with claimed(folder, 0) as is_ours:
            if is_ours:
                state.stop_all(folder)
                _state_file(folder).unlink(missing_ok=True)
                return count
        if not asked:
            asked = _ask_to_stop(folder)
        if time.monotonic() > deadline:
            raise StageFailed(
                f"the supervisor of {folder} did not stop within {DOWN_SECONDS:.0f} s: kill "
                f"process {(folder / 'lock').read_text()}, and run `dreambooth down` again"
            )
        time.sleep(0.1)


def _run(
    layout: StackLayout,
    services: Sequence[Service],
    log: Callable[[str], None],
    ready: Callable[[StackState], None],
) -> None:
    watchdogs = _watchdogs(layout.folder, services, log)
    written, was_ready = None, False
    while True:
        for watchdog in watchdogs:
            watchdog.step({other.service.name for other in watchdogs if other.phase == "ready"})
            if watchdog.phase == "given up" and not was_ready:
                raise StageFailed(f"{watchdog.service.title} does not start: {watchdog.error}")
        current = _state_of(watchdogs)
        if current != written:
            _write_state(layout.folder, current)
            written = current
        if current.ready and not was_ready:
            was_ready = True
            ready(current)
        time.sleep(STEP_SECONDS)


def _watchdogs(
    folder: Path, services: Sequence[Service], log: Callable[[str], None]
) -> list[Watchdog]:
    """A watchdog per service; services of an earlier supervisor are taken over or stopped."""
    running = {started.service: started for started in state.read_all(folder)}
    for name in running.keys() - {service.name for service in services}:
        state.stop(folder, running[name])
    watchdogs = [Watchdog(folder, service, index, log) for index, service in enumerate(services)]
    for watchdog in watchdogs:
        watchdog.take_over(running.get(watchdog.service.name))
    return watchdogs


def _state_of(watchdogs: Sequence[Watchdog]) -> StackState:
    services = {
        watchdog.service.name: ServiceState(
            title=watchdog.service.title,
            link=watchdog.service.link,
            phase=watchdog.phase,
            pid=watchdog.pid,
            error=watchdog.error,
        )
        for watchdog in watchdogs
    }
    all_ready = all(service.phase == "ready" for service in services.values())
    return StackState(supervisor=os.getpid(), ready=all_ready, services=services)


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `KeyboardInterrupt` in the block, like SIGINT."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ask_to_stop(folder: Path) -> bool:
    """Send SIGTERM to the supervisor; False if it cannot be found."""
    pid = (folder / "lock").read_text().strip()
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), signal.SIGTERM)
    except ProcessLookupError:
        return False
    return True


def _write_environment(layout: StackLayout) -> None:
    """Write the client environment as a shell script, readable by this user only."""
    with written_beside(layout.folder / "env.sh") as unfinished:
        unfinished.touch(mode=0o600)
        variables = {**environment(layout), **local.unproxied()}
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
        unfinished.write_text("".join(lines))


def _write_state(folder: Path, stack: StackState) -> None:
    with written_beside(_state_file(folder)) as unfinished:
        unfinished.write_text(stack.model_dump_json(indent=2))


def _state_file(folder: Path) -> Path:
    return folder / "state.json"
