"""Each check on a fault: a used port, a file as folder, wrong credentials, a wrong clock."""

import base64
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest

from dreambooth_core import config, plugins
from dreambooth_core.servers import doctor, local
from dreambooth_core.servers.doctor import NO_SERVER, CheckResult, CheckTarget
from dreambooth_core.servers.process import free_port
from dreambooth_core.servers.stack.settings import (
    PORTS,
    StackLayout,
    StackSettings,
    choose_settings,
    write_settings,
)

ROOT = Path(__file__).parents[4]
SERVERS = ("AWS_ENDPOINT_URL_S3", "PREFECT_API_URL", "DREAMBOOTH_TRACKING_URI")


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SERVERS:
        monkeypatch.delenv(name, raising=False)


class FixedResponse(BaseHTTPRequestHandler):
    """Responds to every GET with one body and a shifted Date header."""

    def __init__(self, body: bytes, ahead: float, *given: object) -> None:
        self.body, self.ahead = body, ahead
        super().__init__(*given)  # type: ignore[arg-type]

    def date_time_string(self, timestamp: float | None = None) -> str:
        return format_datetime(datetime.now(UTC) + timedelta(seconds=self.ahead), usegmt=True)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("ETag", '"any"')  # required in S3's response to a PUT
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        """No output."""


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a server with the body and the clock shift in the parameter."""
    body, ahead = request.param
    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(FixedResponse, body, ahead))
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{web.server_port}"
    web.shutdown()
    thread.join()
    web.server_close()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server with the default bucket; its credentials are in the environment."""
    run = config.Config(
        name="doctor",
        subject=config.Subject(images=Path("photos"), class_noun="dog"),
        paths=config.Paths(work=tmp_path_factory.mktemp("s3")),
    )
    with local.local_services(run):
        yield os.environ["AWS_ENDPOINT_URL_S3"]


def _checked(name: str, target: CheckTarget) -> CheckResult:
    (result,) = plugins.load("dreambooth_core.servers.doctor", name).check(target)
    assert result.check == name
    return result


def _target(folder: Path, endpoint: str | None = None, **other: str) -> CheckTarget:
    storage = config.Storage(endpoint=endpoint) if endpoint else None
    return CheckTarget(folder=folder, storage=storage, **other)


def test_every_check_gives_a_result_without_servers(tmp_path: Path) -> None:
    found = doctor.examine(tmp_path / "up")
    assert {result.check for result in found} == {*plugins.names("dreambooth_core.servers.doctor")}
    skipped = {result.check for result in found if result.sentence == NO_SERVER}
    assert skipped == {"storage", "clock", "prefect", "mlflow"}
    assert not (tmp_path / "up").exists()


def test_a_used_port_is_named(tmp_path: Path) -> None:
    port = free_port(PORTS - 1)
    target = CheckTarget(folder=tmp_path, settings=StackSettings(port=port))
    assert _checked("ports", target).level == "ok"
    with socket.socket() as blocker:
        blocker.bind(("127.0.0.1", port + 10_003))
        blocker.listen()
        result = _checked("ports", target)
    assert result.level == "broken"
    assert f"port {port + 10_003} of 127.0.0.1 is used by another program" in result.sentence


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    assert _checked("disk", _target(tmp_path / "to" / "be" / "made")).level != "broken"
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "up"):
        result = _checked("disk", _target(folder))
        assert result.level == "broken"
        assert f"{tmp_path / 'file'} is not writable" in result.sentence


def test_the_store(tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = _checked("storage", _target(tmp_path, s3))
    assert (result.level, "conditional writes work" in result.sentence) == ("ok", True)

    wrong = secrets.token_urlsafe(30)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", wrong)
    result = _checked("storage", _target(tmp_path, s3))
    assert result.level == "broken"
    assert "refused the credentials (SignatureDoesNotMatch)" in result.sentence
    assert wrong not in result.sentence


@pytest.mark.parametrize("server", [(b"", 0.0)], indirect=True)
def test_a_server_without_conditional_writes(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts every write, like some S3 servers."""
    monkeypatch.setattr(FixedResponse, "do_PUT", FixedResponse.do_GET, raising=False)
    monkeypatch.setattr(FixedResponse, "do_DELETE", FixedResponse.do_GET, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    result = _checked("storage", _target(tmp_path, server))
    assert result.level == "broken"
    assert "ignores If-None-Match" in result.sentence


@pytest.mark.parametrize(
    ("server", "level", "words"),
    [
        ((b"", 0.0), "ok", "at most 5 s off"),
        ((b"", 30.0), "warning", "30 s behind http"),
        ((b"", -3600.0), "broken", "3600 s ahead of http"),
    ],
    indirect=["server"],
)
def test_the_clock(tmp_path: Path, server: str, level: str, words: str) -> None:
    result = _checked("clock", _target(tmp_path, server))
    assert result.level == level
    # a busy machine may take a second to respond
    near = words.replace("30 s", "29 s").replace("3600 s", "3601 s")
    assert words in result.sentence or near in result.sentence


def test_the_clock_of_a_real_server(tmp_path: Path, s3: str) -> None:
    assert _checked("clock", _target(tmp_path, s3)).level == "ok"


@pytest.mark.parametrize("server", [(b'"0.1"', 0.0)], indirect=True)
@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_a_server_of_another_version(tmp_path: Path, server: str, name: str) -> None:
    result = _checked(name, _target(tmp_path, **{name: server}))
    assert result.level == "warning"
    assert "0.1" in result.sentence
    assert version(name) in result.sentence


@pytest.mark.parametrize("server", [(b"", 0.0)], indirect=True)
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("prefect", {"PREFECT_API_AUTH_STRING": "ann:secret"}),
        ("mlflow", {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "secret"}),
    ],
)
def test_a_server_that_requires_credentials(
    tmp_path: Path, server: str, name: str, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = f"Basic {base64.b64encode(b'ann:secret').decode()}"

    def guarded(web: FixedResponse) -> None:
        web.send_response(200 if web.headers["Authorization"] == known else 401)
        web.end_headers()
        web.wfile.write(f'"{version(name)}"'.encode())

    monkeypatch.setattr(FixedResponse, "do_GET", guarded)
    for variable in keys:
        monkeypatch.delenv(variable, raising=False)
    result = _checked(name, _target(tmp_path, **{name: server}))
    assert (result.level, "refuses requests without credentials: set" in result.sentence) == (
        "broken",
        True,
    )
    for variable, value in keys.items():
        monkeypatch.setenv(variable, value)
    result = _checked(name, _target(tmp_path, **{name: server}))
    assert result.level == "ok"
    assert "secret" not in result.sentence


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_an_unreachable_server(tmp_path: Path, name: str) -> None:
    result = _checked(name, _target(tmp_path, **{name: f"http://127.0.0.1:{free_port(0)}"}))
    assert (result.level, "no valid response" in result.sentence) == ("broken", True)


def test_processes_without_a_supervisor(tmp_path: Path) -> None:
    from dreambooth_core.servers.stack import state

    assert _checked("services", _target(tmp_path)).level == "skipped"
    process = subprocess.Popen(
        ["sleep", "300"], env={**os.environ, state.MARK: state.mark(tmp_path, "mlflow")}
    )
    try:
        while not state.marked(tmp_path):  # the environment is empty until exec
            time.sleep(0.01)
        result = _checked("services", _target(tmp_path))
        assert (result.level, result.sentence.split(":")[0]) == (
            "broken",
            "1 processes run without a supervisor",
        )
    finally:
        state.sweep(tmp_path)
        process.wait()


def test_the_exit_code_is_1_if_a_check_is_broken(tmp_path: Path) -> None:
    folder = tmp_path / "up"
    port = free_port(PORTS - 1)
    folder.mkdir()
    write_settings(StackLayout(folder, choose_settings(folder, port, postgres=False), ROOT))
    command = [sys.executable, "-m", "dreambooth_core.cli", "doctor", "--folder", str(folder)]
    with socket.socket() as blocker:
        blocker.bind(("127.0.0.1", port))
        blocker.listen()
        done = subprocess.run(
            [*command, "--json"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    found = {result["check"]: result for result in json.loads(done.stdout)}
    assert found["ports"]["level"] == "broken"
    assert str(port) in found["ports"]["sentence"]
