"""A real Ray cluster on this machine: nodes started as people start them, killed as machines die.

Each node has an address of its own in 127.0.0.0/8 and a work folder of its own. Ray listens on all
interfaces, so where that is allowed the cluster has a network of its own with nothing but loopback.
"""

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

CLONE_NEWNET = 0x40000000
PATIENCE = 600.0
TOKEN = secrets.token_hex(32)
"""Of all clusters: Ray reads a process' token once."""


@contextmanager
def own_network() -> Iterator[None]:
    """A network namespace with loopback alone, for this thread and all that it starts; or nothing.

    Nothing where we may not have one: then the token is what keeps others out.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(CLONE_NEWNET) != 0:
            yield
            return
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        try:
            yield
        finally:
            libc.setns(before, CLONE_NEWNET)
    finally:
        os.close(before)


@dataclass
class Machine:
    """A node: `ray start --block`, and all that it has started."""

    work: Path
    """Its `paths.work`."""
    process: "subprocess.Popen[bytes]"

    def kill(self) -> None:
        """What a power cut does: everything ends at once, and nobody can say anything any more."""
        tree = [psutil.Process(self.process.pid)]
        while True:  # those that are stopped start nobody; at the end nobody new is there
            for one in tree:
                with suppress(psutil.NoSuchProcess):
                    one.send_signal(signal.SIGSTOP)
            found = [tree[0], *tree[0].children(recursive=True)]
            if len(found) == len(tree):
                break
            tree = found
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait()

    def wait_until_it_has_joined(self) -> None:
        deadline, log = time.monotonic() + PATIENCE, self.work / "ray.log"
        while b"Ray runtime started" not in (said := log.read_bytes()):
            assert self.process.poll() is None, said.decode()
            assert time.monotonic() < deadline, said.decode()
            time.sleep(0.1)


class Cluster:
    """A head without room for work, and machines that come and go."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.machines: list[Machine] = []
        self._environment = environment
        self._port = _free_port()
        self._session = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets' paths are short
        self.address = f"127.0.0.1:{self._port}"
        self._head = self._started(
            *("--head", "--port", str(self._port), "--temp-dir", str(self._session)),
            *("--include-dashboard", "false", "--ray-client-server-port", str(_free_port())),
            work=folder / "head",
            host="127.0.0.1",
            cpus=0,
        )
        self._head.wait_until_it_has_joined()

    def add(self, cpus: int = 1) -> Machine:
        """One more machine; it may take a while until Ray knows it."""
        name = str(len(self.machines) + 1)
        host = f"127.0.0.{len(self.machines) + 2}"
        machine = self._started(
            "--address", self.address, work=self.folder / name, host=host, cpus=cpus
        )
        self.machines.append(machine)
        return machine

    def close(self) -> None:
        for machine in (*self.machines, self._head):
            if machine.process.poll() is None:
                machine.kill()
        shutil.rmtree(self._session, ignore_errors=True)

    def _started(self, *words: str, work: Path, host: str, cpus: int) -> Machine:
        work.mkdir(parents=True)
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words),
            *("--node-ip-address", host, "--num-cpus", str(cpus), "--num-gpus", "0"),
            *("--object-store-memory", str(80 * 2**20), "--disable-usage-stats"),
        ]
        environment = {**self._environment, "DREAMBOOTH_WORK": str(work)}
        with (work / "ray.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        return Machine(work, process)


@contextmanager
def cluster(folder: Path, machines: int) -> Iterator[Cluster]:
    """A cluster of so many machines, which `RAY_ADDRESS` names while the block runs."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    # on a busy machine everything may take its time, but a machine that is gone is noticed at once
    patient = {
        "RAY_agent_register_timeout_ms": "300000",
        "RAY_worker_register_timeout_seconds": "300",
    }
    before = dict(os.environ)
    os.environ.update({**token, **quiet, **patient})
    made = Cluster(folder, dict(os.environ))
    os.environ["RAY_ADDRESS"] = made.address
    try:
        for _ in range(machines):
            # work that is asked for earlier queues up behind the first machine's one process, and
            # where all start at once on few cores, Ray gives up after 30 s
            made.add().wait_until_it_has_joined()
        yield made
    finally:
        made.close()
        os.environ.clear()
        os.environ.update(before)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
