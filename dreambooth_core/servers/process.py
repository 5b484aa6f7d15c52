"""Child processes that serve on loopback while a block runs, one per data folder."""

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
"""Longest wait for the server of a killed run to end."""
PORT_TRIES = 3
# below the ephemeral ports of systems; SeaweedFS also listens at each port + 10000
_PORTS = range(12_000, 22_000)


@dataclass(frozen=True)
class Server:
    """How to start a server and check that it is up."""

    name: str
    command: Callable[[int], list[str]]
    """The command, for the first of `1 + neighbours` free ports."""
    is_up: Callable[[int], bool]
    """Whether it responds at this port; must not raise."""
    env: Mapping[str, str]
    folder: Path
    """Folder of data, log and lock; one server at a time."""
    seconds: float
    """Longest start."""
    neighbours: int = 0


@contextmanager
def running(
    server: Server, lock: int, meanwhile: Callable[[int], object] | None = None
) -> Iterator[int]:
    """Run the server while the block runs; yields its port once it is up.

    `lock` (see `claimed`) is inherited by the server, so it is held until the server has ended, also
    if this process is killed. `meanwhile` is called with the port during the start, which is then not
    retried at another port. Raises `StageFailed` if the server does not start.
    """
    with ExitStack() as stack:
        # another process may take the port between our check and the server's start
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
                raise StageFailed(f"{server.name} ended during its start; {log} ends with: {end}")
        yield port


@contextmanager
def claimed(folder: Path) -> Iterator[int]:
    """Lock a data folder against other runs; yields the lock's file descriptor for `running`.

    Waits for the server of a killed run to end; raises `StageFailed` if another run is alive.
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
                    "wait for its end, or set another paths.work"
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
    child = supervised(server.command(port), env=server.env, log=log, keep_open=(lock,))
    process = trial.enter_context(child)
    if meanwhile is not None:
        meanwhile(port)
    deadline = time.monotonic() + server.seconds
    while process.poll() is None:
        if server.is_up(port):
            return True
        if time.monotonic() > deadline:
            raise StageFailed(
                f"{server.name} did not answer within {server.seconds:.0f} s: see {log}, "
                "and try again when the machine is less busy"
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
    raise StageFailed("no free ports on 127.0.0.1 in 12000..32000: end other servers")


def is_free(port: int) -> bool:
    """Whether this port of loopback is free."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
