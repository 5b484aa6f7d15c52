"""`dreambooth up` with real servers: from the first start to `down`, and restored from a copy."""

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
    choose_settings,
    ports_in_use,
    read_settings,
    write_settings,
)
from dreambooth_core.storage.stores import open_store
from dreambooth_core.tracking import mlflow as tracking
from dreambooth_core.training.standalone import train_alone, weights_of
from tests.chaos.system import WORKER, System, running

ROOT = Path(__file__).parents[4]
# like the project's flows around their stages
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
    """This project with one more flow."""
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
    """An environment with variables for other servers, which must have no effect."""
    foreign = {
        "AWS_ACCESS_KEY_ID": "foreign",
        "AWS_PROFILE": "foreign",
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    return {**os.environ, **foreign, "PYTHONPATH": str(ROOT)}


def _start(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "dreambooth_core.cli", *words],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _dreambooth(*words: str) -> str:
    process = _start(*words)
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    return output


def _until(condition: Callable[[], bool], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.2)


def _pids(stack: Mapping[str, Any]) -> dict[str, int]:
    return {name: service["pid"] for name, service in stack["services"].items()}


@pytest.mark.servers
@pytest.mark.timeout(1200)
def test_up_survives_kills_and_a_restore(
    home: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("up", "--folder", str(home), "--project", str(project), "--json")
    port = free_port(PORTS - 1)

    # killed in the middle of its first start
    first = _start(*words, "--port", str(port))
    _until(lambda: state.read(home, "s3") is not None)
    first.kill()
    first.communicate()

    stack = json.loads(_dreambooth(*words, "--detach"))
    assert stack["ready"]
    links = {each["title"]: each["link"] for each in stack["services"].values()}
    statuses = {title: getattr(ask(link), "status", None) for title, link in links.items()}
    assert statuses == {"S3": 403, "Prefect": 200, "MLflow": 401, "Worker": 200}
    settings = read_settings(home)
    assert settings is not None
    assert settings.port == port
    assert _listening(home) == {"127.0.0.1"}

    layout = StackLayout(home, settings, project)
    _run_the_probe(layout)
    with services.client_environment(layout):
        _check_worker_results()

    # the services of a killed supervisor keep running, and the next one takes them over
    os.kill(stack["supervisor"], signal.SIGKILL)
    again = json.loads(_dreambooth(*words, "--detach"))
    assert again["supervisor"] != stack["supervisor"]
    assert _pids(again) == _pids(stack)
    # `up` prints the state of a running stack
    assert json.loads(_dreambooth(*words)) == again

    # killed services
    lease = _acquired_slot(layout)
    killed = {"mlflow", "prefect", "s3"}
    for name in killed:
        os.kill(_pids(again)[name], signal.SIGKILL)
    _until(lambda: _current(home) is not None and _restarted(_current(home), again, killed))
    with services.client_environment(layout):
        _check_worker_results()
    # a slot acquired before the restart can be released
    limits = "/v2/concurrency_limits"
    released = asked(layout, f"{limits}/decrement-with-lease", {"lease_id": lease})
    assert getattr(released, "status", None) == 204
    limit = asked(layout, f"{limits}/gpu")
    assert limit is not None
    assert limit.document()["active_slots"] == 0

    # no secret in readable places
    secret = json.loads((home / "s3" / "s3.json").read_text())["identities"][0]["credentials"][0]
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    texts = [listing, json.dumps(again), *map(_text, (home / "logs").iterdir())]
    texts += [*map(_text, (home / "services").iterdir()), _text(home / "prefect" / "prefect.db")]
    assert not any(secret["secretKey"] in text for text in texts)
    password = layout.login.partition(":")[2]
    assert not any(password in text for text in texts)
    for path in (home / "s3" / "s3.json", home / "env.sh", home / "login"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    # `down` without a supervisor
    os.kill(again["supervisor"], signal.SIGKILL)
    assert "processes stopped" in _dreambooth("down", "--folder", str(home))
    assert state.marked(home) == []
    assert all(map(is_free, ports_in_use(settings)))
    assert _dreambooth("down", "--folder", str(home)) == "nothing was running\n"

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
    _run_the_probe(layout)
    with services.client_environment(layout):
        _check_worker_results(runs=2)


@pytest.mark.servers
@pytest.mark.timeout(1800)
def test_a_training_stopped_by_down_is_resumed_by_up(tmp_path: Path) -> None:
    with running(tmp_path, {}) as system:
        config = _long(system.config("cut"))
        run = system.start(config)
        _until(lambda: _step(system, "cut") > 20)
        _down(system)
        first = _step(system, "cut")
        # the store is sufficient
        shutil.rmtree(system.work("cut"))

        # resumed automatically
        _up(system)
        _until(lambda: _step(system, "cut") > first)
        # a restarted worker does not touch running flows
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
    """Run `down`: no process and no used port remains, well before the timeout."""
    before = time.monotonic()
    assert "processes stopped" in _dreambooth("down", "--folder", str(system.layout.folder))
    assert time.monotonic() - before < 80
    assert state.marked(system.layout.folder) == []
    assert all(map(is_free, ports_in_use(system.layout.settings)))


def _up(system: System) -> None:
    words = ("--folder", str(system.layout.folder), "--project", str(system.folder))
    _dreambooth("up", "--detach", *words)


def _long(config: config.Config) -> config.Config:
    """A training of a minute without checkpoints, except when stopped."""
    train = config.train.model_copy(update={"steps": 1200})
    rarely = config.checkpoints.model_copy(update={"every_n_steps": train.steps})
    return config.model_copy(update={"train": train, "checkpoints": rarely})


def _step(system: System, name: str) -> int:
    """Steps of a run's training; 0 before its start."""
    progress = next(system.work(name).glob("runs/*/progress.json"), None)
    return int(json.loads(progress.read_text())["step"]) if progress else 0


def _run_the_probe(layout: StackLayout) -> None:
    """Run the probe flow by the worker, as from Prefect's UI."""
    found = asked(layout, "/deployments/filter", {})
    assert found is not None
    deployed = {one["name"]: one["id"] for one in found.document()}
    in_yaml = yaml.safe_load((layout.project / "prefect.yaml").read_text())["deployments"]
    assert deployed.keys() == {one["name"] for one in in_yaml}
    limit = asked(layout, "/v2/concurrency_limits/gpu")
    assert limit is not None
    assert limit.document()["limit"] == 1
    settings = asked(layout, "/admin/settings")
    assert settings is not None
    assert settings.document()["ui_url"] == layout.prefect
    automations = asked(layout, "/automations/filter", {})
    assert automations is not None
    named = [one["name"] for one in automations.document() if one["name"].startswith("dreambooth-")]
    files = (ROOT / "infra/automations").glob("*.yaml")
    assert sorted(named) == sorted(f"dreambooth-{path.stem}" for path in files)

    run = json.loads(_run().model_dump_json())
    new = {"parameters": {"run": run}, "state": {"type": "SCHEDULED"}}
    made = asked(layout, f"/deployments/{deployed['probe']}/create_flow_run", new)
    assert made is not None
    path = f"/flow_runs/{made.document()['id']}"

    def ended() -> bool:
        answer = asked(layout, path)
        kind = answer.document()["state"]["type"] if answer and answer.status == 200 else ""
        assert kind not in ("FAILED", "CRASHED"), answer
        return bool(kind == "COMPLETED")

    _until(ended)


def _acquired_slot(layout: StackLayout) -> str:
    """Lease id of the only GPU slot."""
    wanted = {"names": ["gpu"], "slots": 1, "mode": "concurrency", "lease_duration": 600}
    acquired = asked(layout, "/v2/concurrency_limits/increment-with-lease", wanted)
    assert acquired is not None
    return str(acquired.document()["lease_id"])


def _run() -> config.Config:
    """A config with all defaults: local S3, and no MLflow URI."""
    return config.Config(
        name="probe", subject=config.Subject(images=Path("photos"), class_noun="dog")
    )


def _check_worker_results(runs: int = 1) -> None:
    """Check the objects of the worker's runs in S3 and MLflow."""
    run = _run()
    assert open_store(run.storage).get("probe/kept") == b"by the worker"
    client = tracking.open_client(run)
    found, *others = client.search_runs([tracking.experiment_of(client, run)])
    assert len(others) == runs - 1
    assert found.info.run_name == "by the worker"
    # MLflow serves the artifact that the run uploaded to S3
    page = f"{os.environ[results.SERVER]}/get-artifact?path=kept.txt&run_id={found.info.run_id}"
    login = os.environ["PREFECT_API_AUTH_STRING"]
    shown = ask(page, credentials=login)
    assert shown is not None
    assert shown.body == b"an artifact"


def _current(home: Path) -> Any:
    stack = supervisor.stack_state(home)
    return None if stack is None else stack.model_dump()


def _restarted(now: Mapping[str, Any], before: Mapping[str, Any], names: set[str]) -> bool:
    """Whether these services are ready with new process ids, and the others with their old ones."""
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


def test_a_folder_without_deployments_is_refused(tmp_path: Path) -> None:
    process = _start("up", "--folder", str(tmp_path / "up"), "--project", str(tmp_path))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "prefect.yaml has no deployments" in errors
    assert "--project" in errors
    # a refused start must not store its settings
    assert read_settings(tmp_path / "up") is None


def test_settings_that_contradict_the_first_start_are_refused(tmp_path: Path) -> None:
    first = choose_settings(tmp_path, None, postgres=False)
    write_settings(StackLayout(tmp_path, first, tmp_path))
    assert choose_settings(tmp_path, None, postgres=False) == first
    assert choose_settings(tmp_path, first.port, postgres=False) == first
    with pytest.raises(ConfigError, match="omit --port"):
        choose_settings(tmp_path, first.port + 1, postgres=False)
    with pytest.raises(ConfigError, match="sqlite files: omit --postgres"):
        choose_settings(tmp_path, None, postgres=True)


@pytest.mark.parametrize("text", ["", "dreambooth", ":word", "dreambooth:"])
def test_a_broken_login_starts_no_server(tmp_path: Path, text: str) -> None:
    (tmp_path / "login").write_text(text)
    layout = StackLayout(tmp_path, choose_settings(tmp_path, None, postgres=False), tmp_path)
    with pytest.raises(ConfigError, match="login must contain user:password: delete it"):
        services.environment(layout)


def test_a_running_up_is_found_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one of its processes runs, and PREFECT_API_URL names no other server."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    home = tmp_path / "up"
    layout = StackLayout(home, choose_settings(tmp_path, None, postgres=False), tmp_path)
    write_settings(layout)
    with supervisor.stack_environment(home):
        assert "PREFECT_API_URL" not in os.environ
    marked = {**os.environ, state.MARK: state.mark(home, "prefect")}
    with subprocess.Popen(["sleep", "60"], env=marked) as process:
        _until(lambda: state.marked(home) == [process.pid])
        with supervisor.stack_environment(home):
            assert os.environ["PREFECT_API_URL"] == f"{layout.prefect}/api"
            assert os.environ["PREFECT_API_AUTH_STRING"] == (home / "login").read_text()
        monkeypatch.setenv("PREFECT_API_URL", "http://prefect.test/api")
        with supervisor.stack_environment(home):
            assert os.environ["PREFECT_API_URL"] == "http://prefect.test/api"
        process.kill()
