"""A server of our own on loopback: one per data folder, up before the block, gone after it."""

import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.errors import StageFailed
from dreambooth_core.file_locks import try_lock
from dreambooth_core.runtime.processes import last_lines, supervised

LEAVING_SECONDS = 20.0
"""How long the server of a run that was just killed may take to end."""
PORT_TRIES = 3
# Below what systems hand to outgoing connections; SeaweedFS takes each port + 10000 as well.
_PORTS = range(12_000, 22_000)


@dataclass(frozen=True)
class Server:
    """How to start a server and how to see that it works."""

    name: str
    command: Callable[[int], list[str]]
    """The command for a free port, which comes with the next `neighbours`."""
    answers: Callable[[int], bool]
    """Whether it does its work at this port; must not raise."""
    env: Mapping[str, str]
    folder: Path
    """Its data, its log and its lock; one server at a time."""
    seconds: float
    """How long it may take to come up."""
    neighbours: int = 0


@contextmanager
def running(
    server: Server, lock: int, meanwhile: Callable[[int], object] | None = None
) -> Iterator[int]:
    """Run it while the block runs; yields its port once it answers.

    `lock` (see `claimed`) stays held until the server has really ended, also when we are killed.
    `meanwhile` is called with the port while it starts; since it may have spread the port, there is
    no second try then. Raises `StageFailed` when the server does not come up.
    """
    with ExitStack() as stack:
        # somebody may take the port between our look and the server's
        left = PORT_TRIES if meanwhile is None else 1
        while True:
            port = free_port(server.neighbours)
            with ExitStack() as trial:
                if _came_up(trial, server, port, lock, meanwhile):
                    stack.push(trial.pop_all())
                    break
            left -= 1
            if not left:
                log = server.folder / "server.log"
                end = " | ".join(last_lines(log, 3).splitlines())
                raise StageFailed(f"{server.name} ended at its start; {log} ends with: {end}")
        yield port


@contextmanager
def claimed(folder: Path) -> Iterator[int]:
    """Keep other runs out of a data folder; yields the lock's file descriptor for `running`.

    Waits for the server of a run that was just killed; raises `StageFailed` when another run lives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        deadline = time.monotonic() + LEAVING_SECONDS
        while not try_lock(file.fileno()):
            file.seek(0)
            owner = file.read().strip()
            if _alive(owner) or time.monotonic() > deadline:
                raise StageFailed(
                    f"{folder} is in use by another run (process {owner or 'unknown'}): "
                    "wait for its end, or give this run a paths.work of its own"
                )
            time.sleep(0.1)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


@contextmanager
def exported(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set (None: remove) environment variables while the block runs."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _came_up(
    trial: ExitStack,
    server: Server,
    port: int,
    lock: int,
    meanwhile: Callable[[int], object] | None,
) -> bool:
    log = server.folder / "server.log"
    log.unlink(missing_ok=True)
    child = supervised(server.command(port), env=server.env, log=log, hold=(lock,))
    process = trial.enter_context(child)
    if meanwhile is not None:
        meanwhile(port)
    deadline = time.monotonic() + server.seconds
    while process.poll() is None:
        if server.answers(port):
            return True
        if time.monotonic() > deadline:
            raise StageFailed(
                f"{server.name} did not answer within {server.seconds:.0f} s: see {log}, "
                "and run again when the machine is less busy"
            )
        time.sleep(0.1)
    return False


def _alive(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def free_port(neighbours: int) -> int:
    """A port on loopback such that it, the next `neighbours`, and all of them + 10000 are free."""
    for _ in range(200):
        first = random.choice(_PORTS)
        ports = [first + step + more for step in range(neighbours + 1) for more in (0, 10_000)]
        if all(map(is_free, ports)):
            return first
    raise StageFailed("no free port on 127.0.0.1 between 12000 and 32000: end what listens there")


def is_free(port: int) -> bool:
    """Whether nobody listens at this port of loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
