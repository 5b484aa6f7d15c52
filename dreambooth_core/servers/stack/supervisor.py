"""All parts, until told to stop. One supervisor per folder; killed, it is replaced by the next."""

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
from dreambooth_core.servers.stack.settings import FOLDER, StackLayout, keep, read_settings
from dreambooth_core.servers.stack.watchdog import Phase, Watchdog
from dreambooth_core.storage.records import Record
from dreambooth_core.storage.stores import written_beside

STEP_SECONDS = 0.25
DOWN_SECONDS = 240.0
"""More than all parts together may take to stop."""


class ServiceState(Record):
    """A part as its supervisor sees it."""

    title: str
    link: str
    phase: Phase
    pid: int
    error: str = ""


class StackState(Record):
    """A stack as its supervisor sees it."""

    supervisor: int
    """Process id."""
    ready: bool
    """Whether every part works."""
    parts: dict[str, ServiceState]


def supervise(
    place: StackLayout, tell: Callable[[str], None], ready: Callable[[StackState], None]
) -> None:
    """Start or take over all parts and keep them up until SIGTERM, SIGHUP or Ctrl-C; then stop them.

    `ready` is called once, when all work. Raises `StageFailed` when one never starts; the others
    are stopped then.
    """
    _standing_file(place.folder).unlink(missing_ok=True)
    parts = services_of(place)
    keep(place)
    _write_environment(place)
    with client_environment(place), _stoppable():
        try:
            _run(place, parts, tell, ready)
        except KeyboardInterrupt:
            tell("stopping")
        finally:
            # whoever is impatient may kill us, and say `dreambooth down` again
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            state.stop_all(place.folder)
            _standing_file(place.folder).unlink(missing_ok=True)


@contextmanager
def stack_environment(folder: Path = FOLDER) -> Iterator[None]:
    """The servers of a running `up` in our environment, unless PREFECT_API_URL names another one.

    To be entered before prefect is imported, which reads the environment then.
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
    """Be the folder's only supervisor while the block runs; False where another one is.

    Waits a moment for those who only look (`stack_state`).
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
    """What the supervisor last told; None when there is none, or it was killed."""
    try:
        told = StackState.model_validate_json(_standing_file(folder).read_bytes())
        with (folder / "lock").open() as file:
            return None if try_lock(file.fileno(), shared=True) else told
    except OSError:
        return None


def stop_stack(folder: Path) -> int:
    """Stop a stack in order, whether its supervisor lives or not; how many processes there were.

    Raises `StageFailed` when the supervisor does not stop.
    """
    if not folder.is_dir():
        return 0
    count = len(state.marked(folder))
    deadline = time.monotonic() + DOWN_SECONDS
    asked = False
    while True:
        with claimed(folder, 0) as ours:
            if ours:
                state.stop_all(folder)
                _standing_file(folder).unlink(missing_ok=True)
                return count
        if not asked:
            asked = _ask_to_stop(folder)
        if time.monotonic() > deadline:
            raise StageFailed(
                f"the supervisor of {folder} has not stopped within {DOWN_SECONDS:.0f} s: kill "
                f"process {(folder / 'lock').read_text()}, and run `dreambooth down` again"
            )
        time.sleep(0.1)


def _run(
    place: StackLayout,
    parts: Sequence[Service],
    tell: Callable[[str], None],
    ready: Callable[[StackState], None],
) -> None:
    watches = _taken_over(place.folder, parts, tell)
    told, all_up = None, False
    while True:
        for watch in watches:
            watch.step({other.part.name for other in watches if other.phase == "ready"})
            if watch.phase == "given up" and not all_up:
                raise StageFailed(f"{watch.part.title} does not start: {watch.error}")
        now = _seen(watches)
        if now != told:
            _write_standing(place.folder, now)
            told = now
        if now.ready and not all_up:
            all_up = True
            ready(now)
        time.sleep(STEP_SECONDS)


def _taken_over(
    folder: Path, parts: Sequence[Service], tell: Callable[[str], None]
) -> list[Watchdog]:
    """A watch for each part; what an earlier supervisor left goes on, or is ended."""
    left = {started.part: started for started in state.read_all(folder)}
    for name in left.keys() - {part.name for part in parts}:
        state.stop(folder, left[name])
    watches = [Watchdog(folder, part, index, tell) for index, part in enumerate(parts)]
    for watch in watches:
        watch.take_over(left.get(watch.part.name))
    return watches


def _seen(watches: Sequence[Watchdog]) -> StackState:
    seen = {
        watch.part.name: ServiceState(
            title=watch.part.title,
            link=watch.part.link,
            phase=watch.phase,
            pid=watch.pid,
            error=watch.error,
        )
        for watch in watches
    }
    all_up = all(part.phase == "ready" for part in seen.values())
    return StackState(supervisor=os.getpid(), ready=all_up, parts=seen)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Any order to stop interrupts the block."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ask_to_stop(folder: Path) -> bool:
    """Whether its supervisor, whose lock is held, could be asked."""
    owner = (folder / "lock").read_text().strip()
    if not owner.isdigit():
        return False
    try:
        os.kill(int(owner), signal.SIGTERM)
    except ProcessLookupError:
        return False
    return True


def _write_environment(place: StackLayout) -> None:
    """A file for shells whose programs are to work with these servers; for this user's eyes only."""
    with written_beside(place.folder / "env.sh") as unfinished:
        unfinished.touch(mode=0o600)
        variables = {**environment(place), **local.unproxied()}
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
        unfinished.write_text("".join(lines))


def _write_standing(folder: Path, now: StackState) -> None:
    with written_beside(_standing_file(folder)) as unfinished:
        unfinished.write_text(now.model_dump_json(indent=2))


def _standing_file(folder: Path) -> Path:
    return folder / "standing.json"
