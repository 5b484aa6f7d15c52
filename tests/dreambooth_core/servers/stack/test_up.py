"""`dreambooth up` as a whole, with the real servers: from the first start to `down`, and back."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreambooth_core import config
from dreambooth_core.config import results
from dreambooth_core.errors import ConfigError
from dreambooth_core.servers.process import free_port, is_free
from dreambooth_core.servers.stack import services, state, supervisor
from dreambooth_core.servers.stack.deployments import asked
from dreambooth_core.servers.stack.http import ask
from dreambooth_core.servers.stack.settings import (
    PORTS,
    StackLayout,
    keep,
    ports_in_use,
    read_settings,
    settle,
)
from dreambooth_core.storage.stores import open_store
from dreambooth_core.tracking import mlflow as tracking
from dreambooth_core.training.standalone import train_alone, weights_of
from tests.chaos.system import WORKER, System, running

ROOT = Path(__file__).parents[4]
# What every flow of ours does around its stages.
PROBE = """
import os
from prefect import flow, get_run_logger
from dreambooth_core import config
from dreambooth_core.servers import local as services
from dreambooth_core.tracking import mlflow as tracking
from dreambooth_core.storage.stores import open_store

@flow(name="probe")
def probe_flow(run: config.Config):
    with services.local_services(run):
        open_store(run.storage).put("probe/kept", b"by the worker")
        client = tracking.open_client(run)
        made = client.create_run(tracking.experiment_of(client, run), run_name="by the worker")
        client.log_text(made.info.run_id, "an artifact", "kept.txt")
        get_run_logger().info("environment: %s", sorted(os.environ))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Ours, with one more flow."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "flows").symlink_to(ROOT / "flows")
    (folder / "infra").symlink_to(ROOT / "infra")
    (folder / "probe.py").write_text(PROBE)
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    pool = {"name": document["deployments"][0]["work_pool"]["name"]}
    probe = {"name": "probe", "entrypoint": "probe.py:probe_flow", "work_pool": pool}
    document["deployments"].append(probe)
    (folder / "prefect.yaml").write_text(yaml.safe_dump(document))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "up"
    yield folder
    _dreambooth("down", "--folder", str(folder))
    state.sweep(folder)


def _environment() -> dict[str, str]:
    """What users have set for servers elsewhere must not get in the way."""
    elsewhere = {
        "AWS_ACCESS_KEY_ID": "theirs",
        "AWS_PROFILE": "theirs",
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    return {**os.environ, **elsewhere, "PYTHONPATH": str(ROOT)}


def _started(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "dreambooth_core.cli", *words],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _dreambooth(*words: str) -> str:
    process = _started(*words)
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    return output


def _until(condition: Callable[[], bool], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def _pids(standing: Mapping[str, Any]) -> dict[str, int]:
    return {name: part["pid"] for name, part in standing["parts"].items()}


@pytest.mark.servers
@pytest.mark.timeout(1200)
def test_a_whole_life(home: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("up", "--folder", str(home), "--project", str(project), "--json")
    port = free_port(PORTS - 1)

    # killed in the middle of its first start
    first = _started(*words, "--port", str(port))
    _until(lambda: state.read(home, "s3") is not None)
    first.kill()
    first.communicate()

    standing = json.loads(_dreambooth(*words, "--detach"))
    assert standing["ready"]
    links = {part["title"]: part["link"] for part in standing["parts"].values()}
    statuses = {title: getattr(ask(link), "status", None) for title, link in links.items()}
    assert statuses == {"S3": 403, "Prefect": 200, "MLflow": 401, "Worker": 200}
    settings = read_settings(home)
    assert settings is not None
    assert settings.port == port
    assert _listening(home) == {"127.0.0.1"}

    place = StackLayout(home, settings, project)
    _run_the_probe(place)
    with services.client_environment(place):
        _all_is_there()

    # a supervisor that was killed: its parts go on, and the next one takes them over
    os.kill(standing["supervisor"], signal.SIGKILL)
    again = json.loads(_dreambooth(*words, "--detach"))
    assert again["supervisor"] != standing["supervisor"]
    assert _pids(again) == _pids(standing)
    # who is up already says so
    assert json.loads(_dreambooth(*words)) == again

    # parts that were killed
    lease = _taken_place(place)
    killed = {"mlflow", "prefect", "s3"}
    for name in killed:
        os.kill(_pids(again)[name], signal.SIGKILL)
    _until(lambda: _now(home) is not None and _restarted(_now(home), again, killed))
    with services.client_environment(place):
        _all_is_there()
    # whoever had a place on the GPU before can give it back
    limits = "/v2/concurrency_limits"
    given = asked(place, f"{limits}/decrement-with-lease", {"lease_id": lease})
    assert getattr(given, "status", None) == 204
    limit = asked(place, f"{limits}/gpu")
    assert limit is not None
    assert limit.document()["active_slots"] == 0

    # no secret where it can be read
    secret = json.loads((home / "s3" / "s3.json").read_text())["identities"][0]["credentials"][0]
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    told = [listing, json.dumps(again), *map(_text, (home / "logs").iterdir())]
    told += [*map(_text, (home / "parts").iterdir()), _text(home / "prefect" / "prefect.db")]
    assert not any(secret["secretKey"] in text for text in told)
    password = place.login.partition(":")[2]
    assert not any(password in text for text in told)
    for path in (home / "s3" / "s3.json", home / "env.sh", home / "login"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    # down, though there is no supervisor
    os.kill(again["supervisor"], signal.SIGKILL)
    assert "processes stopped" in _dreambooth("down", "--folder", str(home))
    assert state.marked(home) == []
    assert all(map(is_free, ports_in_use(settings)))
    assert _dreambooth("down", "--folder", str(home)) == "nothing was up\n"

    # restored from a copy, without Prefect's history and with other credentials
    home.rename(home.with_name("copy"))
    shutil.copytree(home.with_name("copy"), home, ignore=shutil.ignore_patterns("*.sock"))
    shutil.rmtree(home / "prefect")
    (home / "s3" / "s3.json").unlink()
    (home / "login").unlink()
    shutil.rmtree(home / "s3" / "security")
    assert json.loads(_dreambooth(*words, "--detach"))["ready"]
    assert secret["secretKey"] not in (home / "env.sh").read_text()
    assert password not in (home / "env.sh").read_text()
    _run_the_probe(place)
    with services.client_environment(place):
        _all_is_there(runs=2)


@pytest.mark.servers
@pytest.mark.timeout(1800)
def test_a_training_goes_on_from_where_down_has_stopped_it(tmp_path: Path) -> None:
    with running(tmp_path, {}) as system:
        config = _long(system.config("cut"))
        run = system.start(config)
        _until(lambda: _step(system, "cut") > 20)
        _down(system)
        first = _step(system, "cut")
        # what the store has is enough
        shutil.rmtree(system.work("cut"))

        # by itself
        _up(system)
        _until(lambda: _step(system, "cut") > first)
        # a worker that is started again leaves alone what still works, and is not asked to stop it
        flow, worker = system.processes(run)[0], system.pid(WORKER)
        os.kill(worker, signal.SIGKILL)
        _until(lambda: system.pid(WORKER) not in (0, worker))
        assert (system.state(run), system.processes(run)[0]) == ("RUNNING", flow)
        _down(system)
        second = _step(system, "cut")
        shutil.rmtree(system.work("cut"))

        _up(system)
        assert system.state(run) == "CRASHED"
        system.retry(run)
        _until(lambda: system.state(run) == "COMPLETED", 900)
        weights = weights_of(config)
        assert 20 < first < second <= weights.resumed_from < config.train.steps
        assert weights.digest == train_alone(_long(system.config("alone"))).digests.weights


def _down(system: System) -> None:
    """Nobody and no port is left, and it did not take until the last of its patience."""
    before = time.monotonic()
    assert "processes stopped" in _dreambooth("down", "--folder", str(system.place.folder))
    assert time.monotonic() - before < 80
    assert state.marked(system.place.folder) == []
    assert all(map(is_free, ports_in_use(system.place.settings)))


def _up(system: System) -> None:
    words = ("--folder", str(system.place.folder), "--project", str(system.folder))
    _dreambooth("up", "--detach", *words)


def _long(config: config.Config) -> config.Config:
    """A training of a minute, of which nothing is saved unless it is asked to stop."""
    train = config.train.model_copy(update={"steps": 1200})
    rarely = config.checkpoints.model_copy(update={"every_n_steps": train.steps})
    return config.model_copy(update={"train": train, "checkpoints": rarely})


def _step(system: System, name: str) -> int:
    """How far a run's training is; 0 before it begins."""
    told = next(system.work(name).glob("runs/*/progress.json"), None)
    return int(json.loads(told.read_text())["step"]) if told else 0


def _run_the_probe(place: StackLayout) -> None:
    """By the worker, as if somebody had clicked."""
    found = asked(place, "/deployments/filter", {})
    assert found is not None
    offered = {one["name"]: one["id"] for one in found.document()}
    in_yaml = yaml.safe_load((place.project / "prefect.yaml").read_text())["deployments"]
    assert offered.keys() == {one["name"] for one in in_yaml}
    limit = asked(place, "/v2/concurrency_limits/gpu")
    assert limit is not None
    assert limit.document()["limit"] == 1
    settings = asked(place, "/admin/settings")
    assert settings is not None
    assert settings.document()["ui_url"] == place.prefect
    acting = asked(place, "/automations/filter", {})
    assert acting is not None
    named = [one["name"] for one in acting.document() if one["name"].startswith("dreambooth-")]
    files = (ROOT / "infra/automations").glob("*.yaml")
    assert sorted(named) == sorted(f"dreambooth-{path.stem}" for path in files)

    run = json.loads(_run().model_dump_json())
    new = {"parameters": {"run": run}, "state": {"type": "SCHEDULED"}}
    made = asked(place, f"/deployments/{offered['probe']}/create_flow_run", new)
    assert made is not None
    where = f"/flow_runs/{made.document()['id']}"

    def ended() -> bool:
        answer = asked(place, where)
        kind = answer.document()["state"]["type"] if answer and answer.status == 200 else ""
        assert kind not in ("FAILED", "CRASHED"), answer
        return bool(kind == "COMPLETED")

    _until(ended)


def _taken_place(place: StackLayout) -> str:
    """The lease of the only place on the GPU."""
    wanted = {"names": ["gpu"], "slots": 1, "mode": "concurrency", "lease_duration": 600}
    taken = asked(place, "/v2/concurrency_limits/increment-with-lease", wanted)
    assert taken is not None
    return str(taken.document()["lease_id"])


def _run() -> config.Config:
    """With all defaults: the local S3, and no word of where MLflow is."""
    return config.Config(
        name="probe", subject=config.Subject(images=Path("photos"), class_noun="dog")
    )


def _all_is_there(runs: int = 1) -> None:
    """What the worker's runs have put into S3 and MLflow."""
    run = _run()
    assert open_store(run.storage).get("probe/kept") == b"by the worker"
    client = tracking.open_client(run)
    found, *others = client.search_runs([tracking.experiment_of(client, run)])
    assert len(others) == runs - 1
    assert found.info.run_name == "by the worker"
    # the server shows in its pages what the run has put into S3
    page = f"{os.environ[results.SERVER]}/get-artifact?path=kept.txt&run_id={found.info.run_id}"
    login = os.environ["PREFECT_API_AUTH_STRING"]
    shown = ask(page, credentials=login)
    assert shown is not None
    assert shown.body == b"an artifact"


def _now(home: Path) -> Any:
    standing = supervisor.stack_state(home)
    return None if standing is None else standing.model_dump()


def _restarted(now: Mapping[str, Any], before: Mapping[str, Any], names: set[str]) -> bool:
    """Whether these parts work under new numbers, and the others as before."""
    changed = {name for name, pid in _pids(now).items() if pid != _pids(before)[name]}
    return bool(now["ready"] and changed == names)


def _listening(home: Path) -> set[str]:
    import psutil

    return {
        connection.laddr.ip
        for pid in state.marked(home)
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def _text(path: Path) -> str:
    return path.read_bytes().decode("latin-1") if path.is_file() else ""


def test_without_deployments_it_says_where_to_start(tmp_path: Path) -> None:
    process = _started("up", "--folder", str(tmp_path / "up"), "--project", str(tmp_path))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "prefect.yaml names no deployments" in errors
    assert "--project" in errors
    # else a first try with the wrong options would decide for all later ones
    assert read_settings(tmp_path / "up") is None


def test_other_ports_than_at_first_are_refused(tmp_path: Path) -> None:
    made = settle(tmp_path, None, postgres=False)
    keep(StackLayout(tmp_path, made, tmp_path))
    assert settle(tmp_path, None, postgres=False) == made
    assert settle(tmp_path, made.port, postgres=False) == made
    with pytest.raises(ConfigError, match="leave out --port"):
        settle(tmp_path, made.port + 1, postgres=False)
    with pytest.raises(ConfigError, match="sqlite files: leave out --postgres"):
        settle(tmp_path, None, postgres=True)


@pytest.mark.parametrize("text", ["", "dreambooth", ":word", "dreambooth:"])
def test_a_broken_login_starts_no_server(tmp_path: Path, text: str) -> None:
    (tmp_path / "login").write_text(text)
    place = StackLayout(tmp_path, settle(tmp_path, None, postgres=False), tmp_path)
    with pytest.raises(ConfigError, match="login must hold user:password: delete it"):
        services.environment(place)


def test_a_running_up_is_found_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a process of it lives, and no other Prefect was asked for."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    home = tmp_path / "up"
    place = StackLayout(home, settle(tmp_path, None, postgres=False), tmp_path)
    keep(place)
    with supervisor.stack_environment(home):
        assert "PREFECT_API_URL" not in os.environ
    part = {**os.environ, state.MARK: state.mark(home, "prefect")}
    with subprocess.Popen(["sleep", "60"], env=part) as process:
        _until(lambda: state.marked(home) == [process.pid])
        with supervisor.stack_environment(home):
            assert os.environ["PREFECT_API_URL"] == f"{place.prefect}/api"
            assert os.environ["PREFECT_API_AUTH_STRING"] == (home / "login").read_text()
        monkeypatch.setenv("PREFECT_API_URL", "http://prefect.test/api")
        with supervisor.stack_environment(home):
            assert os.environ["PREFECT_API_URL"] == "http://prefect.test/api"
        process.kill()
