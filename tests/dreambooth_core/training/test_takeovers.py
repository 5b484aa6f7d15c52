"""Tests of `dreambooth train` on several machines that share a store: suspended, killed, resumed."""

import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from dreambooth_core.config import Config, Storage
from dreambooth_core.errors import Superseded
from dreambooth_core.storage import leases
from dreambooth_core.storage.leases import Lease
from dreambooth_core.storage.stores import Store, open_store

pytestmark = [
    pytest.mark.servers,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform != "linux", reason="/proc"),
]

SILENCE = 6.0
"""Seconds without a heartbeat until others take over."""
PATIENCE = 600.0
STEPS = 40
COMMAND = f"""
import sys
from dreambooth_core import cli
from dreambooth_core.storage import leases
leases.SECONDS = {SILENCE}
sys.exit(cli.main())
"""


class Machine:
    """A process that trains in a work folder of its own, with a shared store and MLflow."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        document = config.model_dump(mode="json")
        document["paths"]["work"] = str(folder / "work")
        (folder / "config.yaml").write_text(yaml.safe_dump(document))
        command = [sys.executable, "-c", COMMAND, "train", str(folder / "config.yaml"), "--json"]
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )

    @property
    def printed(self) -> str:
        return (self.folder / "err").read_text()

    @property
    def trained(self) -> bool:
        return any(self.folder.glob("work/runs/*/train.log"))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes: parent, guard and child."""
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                arguments = Path("/proc", name, "cmdline").read_bytes()
                if f"{self.folder}/".encode() in arguments:
                    os.kill(int(name), number)
            except OSError:
                continue

    def lose(self) -> None:
        """Kill all processes; suspended first, so that none reacts to the death of another."""
        self.signal(signal.SIGSTOP)
        self.signal(signal.SIGKILL)

    def ended(self) -> int:
        return self.process.wait(PATIENCE)

    def result(self) -> dict[str, Any]:
        assert self.ended() == 0, self.printed
        found: dict[str, Any] = json.loads((self.folder / "out").read_text())
        return found


class Team:
    """Machines, and their shared store."""

    def __init__(self, config: Config, folder: Path, stack: ExitStack) -> None:
        self.config, self._folder, self._stack = config, folder, stack
        self.store: Store = open_store(config.storage)

    def start(self, name: str) -> Machine:
        machine = Machine(self.config, self._folder / name)
        self._stack.callback(machine.lose)
        return machine

    def freeze(self, machine: Machine) -> None:
        """Suspend it, though not while it holds the lock of a folder store, which would block all."""
        while True:
            machine.signal(signal.SIGSTOP)
            if self._is_unlocked():
                return
            machine.signal(signal.SIGCONT)
            time.sleep(0.05)

    def _is_unlocked(self) -> bool:
        if not self.store.uri.startswith("file:"):
            return True
        with Path(self.store.uri.removeprefix("file://"), "~lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def lease(self) -> Lease | None:
        keys = [key for key in self.store.keys("runs/") if key.endswith("/lease.json")]
        return leases.read(self.store, keys[0].rpartition("/")[0]) if keys else None

    def counts(self) -> list[str]:
        lease = self.lease()
        return [*lease.checkpoints] if lease else []

    def number(self) -> int:
        lease = self.lease()
        return lease.number if lease else 0

    def statuses(self) -> list[str]:
        """Statuses of the MLflow runs of this store."""
        client = MlflowClient(tracking_uri=self.config.tracking.uri)
        known = [
            (found.experiment_id, found.artifact_location) for found in client.search_experiments()
        ]
        experiments = [
            name for name, location in known if location.startswith(f"{self.store.uri}/")
        ]
        return [run.info.status for run in client.search_runs(experiments)]


def until(condition: Callable[[], object], *alive: Machine) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        for machine in alive:
            assert machine.process.poll() is None, machine.printed
        time.sleep(0.02)


@pytest.fixture
def config(tiny_config: Config, mlflow_tables: Path, tmp_path: Path) -> Config:
    tables = tmp_path / "mlflow.db"
    tables.write_bytes(mlflow_tables.read_bytes())
    document = tiny_config.model_dump(mode="json")
    document["train"] |= {"steps": STEPS, "method": "lora"}
    document["prior"] = {"enabled": False}  # saves every machine seconds
    document["checkpoints"] = {"every_n_steps": 4}
    document["tracking"] = {"uri": f"sqlite:///{tables}"}
    return Config.model_validate(document)


@pytest.fixture(params=["file", "s3"])
def team(request: pytest.FixtureRequest, config: Config, tmp_path: Path) -> Iterator[Team]:
    if request.param == "s3":
        endpoint = request.getfixturevalue("s3_endpoint")
        uri = f"s3://contract/takeovers/{secrets.token_hex(6)}"
        config = config.model_copy(update={"storage": Storage(uri=uri, endpoint=endpoint)})
    with ExitStack() as stack:
        yield Team(config, tmp_path, stack)


_UNDISTURBED: list[str] = []


@pytest.fixture
def undisturbed(config: Config, tmp_path: Path) -> str:
    """Digest of the weights of an undisturbed training; photos and base are the same in all tests."""
    if not _UNDISTURBED:
        storage = Storage(uri=(tmp_path / "undisturbed-store").as_uri(), endpoint=None)
        alone = Machine(config.model_copy(update={"storage": storage}), tmp_path / "undisturbed")
        _UNDISTURBED.append(alone.result()["digests"]["weights"])
    return _UNDISTURBED[0]


def test_of_two_processes_one_trains_and_the_other_takes_its_weights(
    team: Team, undisturbed: str
) -> None:
    first = team.start("first")
    until(team.lease, first)
    team.freeze(first)  # until the second machine, not started yet, has seen it hold the lease
    second = team.start("second")
    until(lambda: "waiting for the result" in second.printed, second)
    first.signal(signal.SIGCONT)
    assert f"is being computed by process {first.process.pid} on " in second.printed
    own, other = first.result(), second.result()
    assert own["digests"]["weights"] == other["digests"]["weights"] == undisturbed
    assert (own["reused"], other["reused"]) == (False, True)
    assert (first.trained, second.trained) == (True, False)
    assert team.number() == 1
    assert team.statuses() == ["FINISHED"]


def test_another_machine_finishes_the_training_of_a_lost_one(team: Team, undisturbed: str) -> None:
    first = team.start("first")
    until(team.counts, first)
    first.lose()
    second = team.start("second")
    result = second.result()
    assert result["digests"]["weights"] == undisturbed
    assert 0 < result["resumed_from"] < STEPS
    assert not result["reused"]
    assert team.number() == 2
    assert {name.partition(".")[2] for name in team.counts()} == {"2"}


def test_a_suspended_holder_is_superseded(team: Team, undisturbed: str) -> None:
    first = team.start("first")
    until(team.counts, first)
    team.freeze(first)
    before = set(team.counts())
    second = team.start("second")
    until(lambda: team.number() == 2, second)
    team.freeze(second)
    first.signal(signal.SIGCONT)
    assert first.ended() == Superseded.exit_code
    *_, last = first.printed.splitlines()
    assert last.startswith("Error: the lease ")
    assert f"was taken over by process {second.process.pid} on " in last
    assert set(team.counts()) == before
    second.signal(signal.SIGCONT)
    assert second.result()["digests"]["weights"] == undisturbed
    assert {name.partition(".")[2] for name in team.counts()} == {"2"}
    folders = {key.split("/")[3] for key in team.store.keys("runs/") if "/checkpoints/" in key}
    assert folders == set(team.counts())
    assert team.statuses() == ["FINISHED"]
