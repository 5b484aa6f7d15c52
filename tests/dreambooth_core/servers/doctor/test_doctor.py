"""Each check meets what it is for: a taken port, a path that is no folder, wrong keys, a wrong clock."""

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
from dreambooth_core.servers.doctor import NOTHING_UP, CheckResult, CheckTarget
from dreambooth_core.servers.process import free_port
from dreambooth_core.servers.stack.settings import PORTS, StackLayout, StackSettings, keep, settle

ROOT = Path(__file__).parents[4]
SERVERS = ("AWS_ENDPOINT_URL_S3", "PREFECT_API_URL", "DREAMBOOTH_TRACKING_URI")


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SERVERS:
        monkeypatch.delenv(name, raising=False)


class Told(BaseHTTPRequestHandler):
    """Answers every GET with one body, at another time than ours."""

    def __init__(self, body: bytes, ahead: float, *given: object) -> None:
        self.body, self.ahead = body, ahead
        super().__init__(*given)  # type: ignore[arg-type]

    def date_time_string(self, timestamp: float | None = None) -> str:
        return format_datetime(datetime.now(UTC) + timedelta(seconds=self.ahead), usegmt=True)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("ETag", '"any"')  # as every S3 server's answer to a PUT has
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a server with the body and the clock that the test asks for."""
    body, ahead = request.param
    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(Told, body, ahead))
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{web.server_port}"
    web.shutdown()
    thread.join()
    web.server_close()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server with our default bucket; its keys are in the environment."""
    run = config.Config(
        name="doctor",
        subject=config.Subject(images=Path("photos"), class_noun="dog"),
        paths=config.Paths(work=tmp_path_factory.mktemp("s3")),
    )
    with local.local_services(run):
        yield os.environ["AWS_ENDPOINT_URL_S3"]


def _checked(name: str, site: CheckTarget) -> CheckResult:
    (finding,) = plugins.load("dreambooth_core.servers.doctor", name).check(site)
    assert finding.check == name
    return finding


def _site(folder: Path, endpoint: str | None = None, **other: str) -> CheckTarget:
    storage = config.Storage(endpoint=endpoint) if endpoint else None
    return CheckTarget(folder=folder, storage=storage, **other)


def test_every_check_has_something_to_say_where_nothing_is_up(tmp_path: Path) -> None:
    found = doctor.examine(tmp_path / "up")
    assert {finding.check for finding in found} == {
        *plugins.names("dreambooth_core.servers.doctor")
    }
    skipped = {finding.check for finding in found if finding.sentence == NOTHING_UP}
    assert skipped == {"storage", "clock", "prefect", "mlflow"}
    assert not (tmp_path / "up").exists()


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    port = free_port(PORTS - 1)
    site = CheckTarget(folder=tmp_path, settings=StackSettings(port=port))
    assert _checked("ports", site).level == "ok"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 10_003))
        taken.listen()
        finding = _checked("ports", site)
    assert finding.level == "broken"
    assert f"port {port + 10_003} of 127.0.0.1 is taken by another program" in finding.sentence


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    assert _checked("disk", _site(tmp_path / "to" / "be" / "made")).level != "broken"
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "up"):
        finding = _checked("disk", _site(folder))
        assert finding.level == "broken"
        assert f"{tmp_path / 'file'} takes no file" in finding.sentence


def test_the_store(tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = _checked("storage", _site(tmp_path, s3))
    assert (finding.level, "create-once writes hold" in finding.sentence) == ("ok", True)

    wrong = secrets.token_urlsafe(30)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", wrong)
    finding = _checked("storage", _site(tmp_path, s3))
    assert finding.level == "broken"
    assert "refused the credentials (SignatureDoesNotMatch)" in finding.sentence
    assert wrong not in finding.sentence


@pytest.mark.parametrize("server", [(b"", 0.0)], indirect=True)
def test_a_server_whose_create_once_is_none(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes every write, as some that call themselves S3 do."""
    monkeypatch.setattr(Told, "do_PUT", Told.do_GET, raising=False)
    monkeypatch.setattr(Told, "do_DELETE", Told.do_GET, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    finding = _checked("storage", _site(tmp_path, server))
    assert finding.level == "broken"
    assert "lets a second create-once write through" in finding.sentence


@pytest.mark.parametrize(
    ("server", "level", "words"),
    [
        ((b"", 0.0), "ok", "at most 5 s"),
        ((b"", 30.0), "warning", "30 s behind http"),
        ((b"", -3600.0), "broken", "3600 s ahead of http"),
    ],
    indirect=["server"],
)
def test_the_clock(tmp_path: Path, server: str, level: str, words: str) -> None:
    finding = _checked("clock", _site(tmp_path, server))
    assert finding.level == level
    # a busy machine may take a second to answer
    near = words.replace("30 s", "29 s").replace("3600 s", "3601 s")
    assert words in finding.sentence or near in finding.sentence


def test_the_clock_of_a_real_server(tmp_path: Path, s3: str) -> None:
    assert _checked("clock", _site(tmp_path, s3)).level == "ok"


@pytest.mark.parametrize("server", [(b'"0.1"', 0.0)], indirect=True)
@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_a_server_of_another_version(tmp_path: Path, server: str, name: str) -> None:
    finding = _checked(name, _site(tmp_path, **{name: server}))
    assert finding.level == "warning"
    assert "0.1" in finding.sentence
    assert version(name) in finding.sentence


@pytest.mark.parametrize("server", [(b"", 0.0)], indirect=True)
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("prefect", {"PREFECT_API_AUTH_STRING": "ann:secret"}),
        ("mlflow", {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "secret"}),
    ],
)
def test_a_server_that_asks_who_we_are(
    tmp_path: Path, server: str, name: str, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = f"Basic {base64.b64encode(b'ann:secret').decode()}"

    def guarded(web: Told) -> None:
        web.send_response(200 if web.headers["Authorization"] == known else 401)
        web.end_headers()
        web.wfile.write(f'"{version(name)}"'.encode())

    monkeypatch.setattr(Told, "do_GET", guarded)
    for variable in keys:
        monkeypatch.delenv(variable, raising=False)
    finding = _checked(name, _site(tmp_path, **{name: server}))
    assert (finding.level, "refuses us without credentials: set" in finding.sentence) == (
        "broken",
        True,
    )
    for variable, value in keys.items():
        monkeypatch.setenv(variable, value)
    finding = _checked(name, _site(tmp_path, **{name: server}))
    assert finding.level == "ok"
    assert "secret" not in finding.sentence


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_a_server_that_is_gone(tmp_path: Path, name: str) -> None:
    finding = _checked(name, _site(tmp_path, **{name: f"http://127.0.0.1:{free_port(0)}"}))
    assert (finding.level, "no good answer" in finding.sentence) == ("broken", True)


def test_parts_that_nobody_supervises(tmp_path: Path) -> None:
    from dreambooth_core.servers.stack import state

    assert _checked("services", _site(tmp_path)).level == "skipped"
    left = subprocess.Popen(
        ["sleep", "300"], env={**os.environ, state.MARK: state.mark(tmp_path, "mlflow")}
    )
    try:
        while not state.marked(tmp_path):  # a process has no environment yet when it has just begun
            time.sleep(0.01)
        finding = _checked("services", _site(tmp_path))
        assert (finding.level, finding.sentence.split(":")[0]) == (
            "broken",
            "1 processes are up and nobody supervises them",
        )
    finally:
        state.sweep(tmp_path)
        left.wait()


def test_the_command_fails_when_something_is_broken(tmp_path: Path) -> None:
    folder = tmp_path / "up"
    port = free_port(PORTS - 1)
    folder.mkdir()
    keep(StackLayout(folder, settle(folder, port, postgres=False), ROOT))
    command = [sys.executable, "-m", "dreambooth_core.cli", "doctor", "--folder", str(folder)]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = subprocess.run(
            [*command, "--json"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert found["ports"]["level"] == "broken"
    assert str(port) in found["ports"]["sentence"]
