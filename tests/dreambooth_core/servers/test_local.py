import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from dreambooth_core import config
from dreambooth_core.errors import ConfigError, StageFailed
from dreambooth_core.servers import certificates, local
from dreambooth_core.storage.stores import open_store

ROOT = Path(__file__).parents[3]
WRITER = """
import sys, time
from pathlib import Path
from dreambooth_core import config
from dreambooth_core.servers import local as services
from dreambooth_core.storage.stores import open_store
run = config.Config.model_validate_json(sys.argv[1])
with services.local_services(run):
    store = open_store(run.storage)
    for number in range(40):
        store.put(f"n/{number}", str(number).encode() * 1000)
    print("written", flush=True)
    time.sleep(300)
"""
FLOW = """
import sys, time
from pathlib import Path
from dreambooth_core.servers import local as services
def import_prefect():
    import prefect
with services.prefect_api(Path(sys.argv[1]), import_prefect):
    import prefect
    @prefect.task
    def one():
        prefect.get_run_logger().info("a log line")
        return 1
    @prefect.flow
    def small():
        return one()
    assert small() == 1
    print("done", flush=True)
    if sys.argv[2:] == ["wait"]:
        time.sleep(300)
"""


def _run(work: Path, **storage: str | None) -> config.Config:
    return config.Config(
        name="services",
        subject=config.Subject(images=Path("photos"), class_noun="dog"),
        storage=config.Storage.model_validate(storage or {"uri": "s3://bucket-a/factory"}),
        paths=config.Paths(work=work),
    )


@pytest.mark.parametrize(
    "storage",
    [{"uri": "file:///some/folder"}, {"uri": "s3://contract", "endpoint": None}],
)
def test_no_server_is_started_without_need(
    s3_endpoint: str, tmp_path: Path, storage: dict[str, str | None]
) -> None:
    before = dict(os.environ)
    with local.local_services(_run(tmp_path / "w", **storage)):
        assert dict(os.environ) == before
    assert list((tmp_path / "w").iterdir()) == []


def test_mlflow_gets_the_endpoint_of_an_external_store(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL", raising=False)
    before = dict(os.environ)
    run = _run(tmp_path / "w", uri="s3://contract", endpoint=s3_endpoint)
    with local.local_services(run):
        assert os.environ["MLFLOW_S3_ENDPOINT_URL"] == s3_endpoint
    assert dict(os.environ) == before
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://foreign.test:9000")
    with local.local_services(run):
        assert os.environ["MLFLOW_S3_ENDPOINT_URL"] == "http://foreign.test:9000"
    assert list((tmp_path / "w").iterdir()) == []


def test_a_local_s3_for_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # variables set for cloud services must have no effect
    monkeypatch.setenv("AWS_SESSION_TOKEN", "foreign")
    monkeypatch.setenv("AWS_PROFILE", "foreign")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "foreign")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    run = _run(tmp_path)
    before = dict(os.environ)
    with local.local_services(run):
        store = open_store(run.storage)
        store.put("a", b"1")
        url = os.environ["AWS_ENDPOINT_URL_S3"]
        assert os.environ["MLFLOW_S3_ENDPOINT_URL"] == url
        assert _status(f"{url}/bucket-a/factory/a") == 403
        assert _all_on_loopback(int(url.rpartition(":")[2]))
        inside = dict(os.environ)
        with local.local_services(run):
            assert dict(os.environ) == inside
        assert store.get("a") == b"1"
        with pytest.raises(StageFailed, match="in use by another run"):
            _enter_from_another_process(run)
    assert dict(os.environ) == before
    assert _status(url) is None
    secrets = tmp_path / "s3" / "s3.json"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
    made = secrets.read_text()
    with local.local_services(_run(tmp_path, uri="s3://bucket-b")):
        # the same server, now with a second bucket
        assert open_store(run.storage).get("a") == b"1"
        assert list(open_store(config.Storage(uri="s3://bucket-b")).keys("")) == []
    assert secrets.read_text() == made


def test_the_server_of_dreambooth_up_is_the_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(_descendants(os.getpid()))
    with local.local_services(_run(tmp_path / "up")):
        monkeypatch.setenv(local.STACK, str(tmp_path / "up"))
        other = _run(tmp_path / "other", uri="s3://bucket-c/x")
        with local.local_services(other):
            open_store(other.storage).put("a", b"1")
            assert len(_descendants(os.getpid())) == before + 2  # a guard and a server
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "mode", "now"),
    [
        (".dreambooth", None, 0o700),
        (".dreambooth", 0o755, 0o700),
        ("w", None, 0o700),
        ("w", 0o775, 0o775),
    ],
)
def test_a_work_folder_is_private_unless_a_user_created_it(
    tmp_path: Path, name: str, mode: int | None, now: int
) -> None:
    work, before = tmp_path / name, os.umask(0)
    try:
        if mode is not None:
            work.mkdir(mode)
        local.keep_private(work)
    finally:
        os.umask(before)
    assert stat.S_IMODE(work.stat().st_mode) == now


def test_a_certificate_with_another_key_is_refused(tmp_path: Path) -> None:
    """SeaweedFS would serve without TLS."""
    kept, other = (certificates.files_in(tmp_path / name) for name in ("kept", "other"))
    assert certificates.files_in(tmp_path / "kept") == kept
    other.key.replace(kept.key)
    with pytest.raises(StageFailed, match="kept has no valid certificate and key: delete it"):
        certificates.files_in(tmp_path / "kept")


def test_data_survives_a_killed_run_and_its_processes_end(tmp_path: Path) -> None:
    run = _run(tmp_path)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, run.model_dump_json()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"written\n"
    tree = _descendants(writer.pid)
    assert len(tree) == 2  # the guard and the server
    writer.kill()
    writer.wait()
    # at once, while the old server is still stopping
    with local.local_services(run):
        assert not any(map(_alive, tree))
        store = open_store(run.storage)
        assert len(list(store.keys("n/"))) == 40
        assert store.get("n/7") == b"7" * 1000
    assert _processes_with(str(tmp_path)) == []


def test_seaweedfs_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"\[local\].*file:///"):
        local.local_services(_run(tmp_path)).__enter__()


def test_lost_credentials(tmp_path: Path) -> None:
    (tmp_path / "s3").mkdir()
    (tmp_path / "s3" / "s3.json").write_text(json.dumps({"identities": []}))
    with pytest.raises(StageFailed, match=r"s3\.json has no credentials: delete it"):
        local.local_services(_run(tmp_path)).__enter__()


def test_a_bucket_name_the_server_refuses(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"storage\.uri 's3://Bad_Name/x' has no valid bucket name"
    ):
        local.local_services(_run(tmp_path, uri="s3://Bad_Name/x")).__enter__()
    assert _processes_with(str(tmp_path)) == []


def test_a_configured_prefect_server_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.test/api")
    before = dict(os.environ)
    with local.prefect_api(tmp_path / "w"):
        assert dict(os.environ) == before
    assert not (tmp_path / "w").exists()


def test_a_prefect_server_for_the_run(tmp_path: Path) -> None:
    """It receives all logs, and ends without errors, also with a killed run."""
    first = _flow(tmp_path)
    output, errors = first.communicate(timeout=300)
    assert (first.returncode, output) == (0, "done\n")
    assert "ERROR" not in errors
    assert "Error logging" not in errors
    assert _processes_with(str(tmp_path)) == []
    assert _rows(tmp_path, "select count(*) from log where message = 'a log line'") == 1
    assert _rows(tmp_path, "select count(*) from task_run where state_name = 'Completed'") == 1

    second = _flow(tmp_path, "wait")
    assert second.stdout is not None
    assert second.stdout.readline() == "done\n"
    tree = _descendants(second.pid)
    assert len(tree) == 2  # the guard and the server
    second.send_signal(signal.SIGKILL)
    second.wait()
    deadline = time.monotonic() + 20
    while any(map(_alive, tree)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _flow(work: Path, *arguments: str) -> "subprocess.Popen[str]":
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    return subprocess.Popen(
        [sys.executable, "-c", FLOW, str(work), *arguments],
        env={**env, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _rows(work: Path, query: str) -> int:
    with sqlite3.connect(work / "prefect" / "prefect.db") as database:
        return int(database.execute(query).fetchone()[0])


def _enter_from_another_process(run: config.Config) -> None:
    """Enter without the variable that marks this process as inside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DREAMBOOTH_LOCAL_S3")
        local.local_services(run).__enter__()


def _status(url: str) -> int | None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _all_on_loopback(port: int) -> bool:
    """Whether the server's ports listen on 127.0.0.1 only; True on systems without /proc."""
    table = Path("/proc/net/tcp")
    if not table.is_file():
        return True
    ports = {first + step for first in (port, port + 10_000) for step in range(5)}
    listening = [
        line.split()[1].split(":")
        for name in (table, table.with_name("tcp6"))
        if name.is_file()
        for line in name.read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    ]
    sockets = [
        (address, int(number, 16)) for address, number in listening if int(number, 16) in ports
    ]
    return {number for _, number in sockets} == ports and {a for a, _ in sockets} == {"0100007F"}


def _processes_with(text: str) -> list[int]:
    listing = subprocess.run(["ps", "-eo", "pid=,stat=,args="], capture_output=True, text=True)
    rows = [line.split(None, 2) for line in listing.stdout.splitlines()]
    own = {os.getpid()}
    return [
        int(pid)
        for pid, state, arguments in rows
        if text in arguments and not state.startswith("Z") and int(pid) not in own
    ]


def _alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip()[:1] not in ("", "Z")


def _descendants(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True)
    rows = [tuple(map(int, line.split())) for line in listing.stdout.splitlines()]
    below = [child for child, parent in rows if parent == pid]
    return below + [further for child in below for further in _descendants(child)]
