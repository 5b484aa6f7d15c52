"""A Ray cluster on this machine: nodes are started by `ray start` and killed like machines.

Each node has its own address in 127.0.0.0/8 and its own work folder. Ray listens on all interfaces,
so the cluster runs in a network namespace with loopback only, where that is permitted.
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
TIMEOUT = 600.0
TOKEN = secrets.token_hex(32)
"""The token of all clusters, which Ray reads once per process."""


@contextmanager
def own_network() -> Iterator[None]:
    """A network namespace with loopback only, for this thread and its child processes.

    No effect without the permission; access is then restricted by the token only.
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
    """A node: `ray start --block` and its descendants."""

    work: Path
    """Its `paths.work`."""
    process: "subprocess.Popen[bytes]"

    def kill(self) -> None:
        """End all processes at once without cleanup, as in a power failure."""
        tree = [psutil.Process(self.process.pid)]
        while True:  # stopped processes start no others; repeated until no new one is found
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

    def wait_until_joined(self) -> None:
        deadline, log = time.monotonic() + TIMEOUT, self.work / "ray.log"
        while b"Ray runtime started" not in (text := log.read_bytes()):
            assert self.process.poll() is None, text.decode()
            assert time.monotonic() < deadline, text.decode()
            time.sleep(0.1)


class Cluster:
    """A head node without CPUs, and machines that can be added and killed."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.machines: list[Machine] = []
        self._environment = environment
        self._port = _free_port()
        self._session = Path(
            tempfile.mkdtemp(prefix="ray-")
        )  # the length of sockets' paths is limited
        self.address = f"127.0.0.1:{self._port}"
        self._head = self._started(
            *("--head", "--port", str(self._port), "--temp-dir", str(self._session)),
            *("--include-dashboard", "false", "--ray-client-server-port", str(_free_port())),
            work=folder / "head",
            host="127.0.0.1",
            cpus=0,
        )
        self._head.wait_until_joined()

    def add(self, cpus: int = 1) -> Machine:
        """Start one more machine, without waiting until it has joined."""
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
    """A cluster with this number of machines, at `RAY_ADDRESS` during the block."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    # long timeouts for busy machines; they do not delay the detection of dead nodes
    timeouts = {
        "RAY_agent_register_timeout_ms": "300000",
        "RAY_worker_register_timeout_seconds": "300",
    }
    before = dict(os.environ)
    os.environ.update({**token, **quiet, **timeouts})
    made = Cluster(folder, dict(os.environ))
    os.environ["RAY_ADDRESS"] = made.address
    try:
        for _ in range(machines):
            # one after the other: work submitted earlier would queue on the first machine, and
            # with all starting at once on few cores, Ray fails after 30 s
            made.add().wait_until_joined()
        yield made
    finally:
        made.close()
        os.environ.clear()
        os.environ.update(before)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
