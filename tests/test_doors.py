"""Access to the servers of `up` and of a run: none for pages of another origin and other users.

The page is opened in Chromium; the other user is `nobody`, in a forked process.
"""

import base64
import http.server
import json
import os
import pwd
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreambooth_core.servers import local
from dreambooth_core.storage.stores import s3
from tests import browser
from tests.conftest import draw_photos

ROOT = Path(__file__).parent.parent
SECRET = b"a photo of a person"
BUCKET, KEY = "dreambooth", "photo"
REFUSED = {0, 400, 401, 403}
"""Statuses of refused requests; 0 for no response, or one that a page cannot read."""
NAME = "intruder"
Ask = Callable[[str, str, Any], tuple[int, str]]
"""(method, URL, JSON document) -> (status, text)."""
RUN = """
import json, os, sys
from pathlib import Path
from dreambooth_core import config
from dreambooth_core.servers import local as services
run = config.Config(name="doors", subject=config.Subject(images=Path("photos"), class_noun="dog"))
with services.local_services(run), services.prefect_api(run.paths.work):
    variables = {name: os.environ.get(name, "") for name in
            ("AWS_ENDPOINT_URL_S3", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING")}
    print(json.dumps(variables), flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True)
class Servers:
    """Addresses and credentials of running servers."""

    work: Path
    """The default work folder."""
    s3: Path
    """Folder of the S3 server."""
    s3_port: int
    prefect: str
    login: str
    """Login to Prefect and MLflow, `user:password`; empty if none is required."""
    mlflow: str = ""

    def store(self) -> Any:
        """A client with the owner's credentials."""
        (pair,) = json.loads((self.s3 / "s3.json").read_text())["identities"][0]["credentials"]
        keys = {"AWS_ACCESS_KEY_ID": pair["accessKey"], "AWS_SECRET_ACCESS_KEY": pair["secretKey"]}
        with local.exported({**keys, "AWS_DEFAULT_REGION": "us-east-1", "AWS_PROFILE": None}):
            return s3.client(local.url(self.s3_port))

    def asked(self, url: str, document: Any) -> str:
        """Response to the owner."""
        return ask(url, document, login=self.login)[1]


@pytest.fixture
def project() -> Iterator[Path]:
    """A project with one deployment, in a folder that every user may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="doors-"))
    folder.chmod(0o755)
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    document["deployments"] = document["deployments"][:1]
    (folder / "prefect.yaml").write_text(yaml.safe_dump(document))
    for name in ("flows", "tasks"):
        (folder / name).symlink_to(ROOT / name)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def up(project: Path) -> Iterator[Servers]:
    home = project / ".dreambooth" / "up"
    try:
        dreambooth("up", "--detach", cwd=project)
        port = json.loads((home / "settings.json").read_text())["port"]
        login = home / "login"
        yield Servers(
            work=home.parent,
            s3=home / "s3",
            s3_port=port + 3,
            prefect=local.url(port),
            login=login.read_text() if login.is_file() else "",
            mlflow=local.url(port + 1),
        )
    finally:
        dreambooth("down", cwd=project)


@pytest.fixture
def run(project: Path) -> Iterator[Servers]:
    """The servers of `dreambooth run`."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN],
        env=environment(),
        cwd=project,
        umask=0,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout
        variables = json.loads(process.stdout.readline())
        work = project / ".dreambooth"
        yield Servers(
            work=work,
            s3=work / "s3",
            s3_port=int(variables["AWS_ENDPOINT_URL_S3"].rpartition(":")[2]),
            prefect=variables["PREFECT_API_URL"].removesuffix("/api"),
            login=variables["PREFECT_API_AUTH_STRING"],
        )
        process.communicate(timeout=120)


def environment() -> dict[str, str]:
    names = ("AWS_", "PREFECT_API", "DREAMBOOTH_", "MLFLOW_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    return {**kept, "PYTHONPATH": str(ROOT)}


def dreambooth(*words: str, cwd: Path) -> str:
    """Output of the command, run with umask 0."""
    command = [sys.executable, "-m", "dreambooth_core.cli", *words]
    done = subprocess.run(
        command, env=environment(), cwd=cwd, umask=0, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(
    url: str,
    document: Any = None,
    method: str | None = None,
    login: str = "",
    headers: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Status and text of a response, without a proxy; 0 for no response."""
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unverified)
    )
    sent = {"Content-Type": "application/json", **(headers or {})}
    if login:
        sent["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    body = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, body, sent, method=method)
    try:
        with opener.open(request, timeout=20) as response:
            return response.status, response.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace")
    except OSError:
        return 0, ""


def as_nobody(work: Callable[[], Any]) -> Any:
    """The result of a call in a process of the user `nobody`."""
    user = pwd.getpwnam("nobody")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
            os.write(writing, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        result = file.read()
    os.waitpid(child, 0)
    return json.loads(result)


def ask_as_nobody(method: str, url: str, document: Any) -> tuple[int, str]:
    status, text = as_nobody(lambda: ask(url, document, method))
    return status, text


@contextmanager
def foreign_page(profile: Path, servers: Servers) -> Iterator[Ask]:
    """Requests by a page of another origin, in a browser that has logged in to MLflow."""

    class Empty(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server,
        browser.browsing(profile) as tab,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        if servers.mlflow:
            tab.open(servers.mlflow.replace("://", f"://{servers.login}@"), 800)
            assert tab.until("document.title") == "MLflow"
        tab.open(f"http://127.0.0.1:{server.server_port}/", 800)

        def fetch(method: str, url: str, document: Any) -> tuple[int, str]:
            options: dict[str, Any] = {"method": method, "credentials": "include"}
            if document is not None:
                options |= {
                    "body": json.dumps(document),
                    "headers": {"Content-Type": "application/json"},
                }
            called = f"fetch({json.dumps(url)}, {json.dumps(options)})"
            # a request whose response is unreadable may have been executed
            blind = {"method": method, "mode": "no-cors", "credentials": "include"}
            if method == "POST":
                blind["body"] = json.dumps(document)
            if method in ("GET", "POST"):
                tab.ask(f"fetch({json.dumps(url)}, {json.dumps(blind)}).then(() => 1, () => 0)")
            # without credentials, as CORS with `*` refuses responses to requests with them
            plain = called.replace('"include"', '"omit"')
            read = "async response => [response.status, await response.text()]"
            first = f"{called}.then({read}).catch(() => {plain}.then({read})).catch(() => [0, ''])"
            status, text = tab.ask(first)
            return status, text

        yield fetch
        server.shutdown()


def accepted(servers: Servers, ask: Ask) -> list[str]:
    """The requests that were not refused."""
    filer, master = local.url(servers.s3_port + 3), local.url(servers.s3_port + 1)
    volume, admin = local.url(servers.s3_port + 2), local.url(servers.s3_port + 4)
    api, tracking = f"{servers.prefect}/api", f"{servers.mlflow}/ajax-api/2.0/mlflow"
    requests: list[tuple[str, str, Any]] = [
        ("POST", f"{api}/deployments/filter", {}),
        ("GET", f"{api}/admin/settings", None),
        ("GET", f"{filer}/buckets/{BUCKET}/?pretty=y", None),
        ("GET", f"{filer}/buckets/{BUCKET}/{KEY}", None),
        ("PUT", f"{filer}/buckets/{BUCKET}/{NAME}", {}),
        ("POST", f"{filer}/buckets/{BUCKET}/{NAME}", {}),
        ("DELETE", f"{filer}/buckets/{BUCKET}/{KEY}", None),
        ("GET", f"{master}/dir/assign", None),
        ("GET", f"{master}/dir/status", None),
        ("GET", f"{master}/col/delete?collection={BUCKET}", None),
        ("GET", f"{volume}/status", None),
        ("GET", f"{admin}/metrics", None),
        ("GET", f"{local.url(servers.s3_port)}/{BUCKET}/{KEY}", None),
        ("PUT", f"{local.url(servers.s3_port)}/{BUCKET}/{NAME}", {}),
    ]
    requests += [
        (method, url.replace("http:", "https:"), document)
        for method, url, document in requests
        if url.startswith((filer, master, volume, admin))
    ]
    if servers.mlflow:
        requests += [
            ("GET", f"{tracking}/experiments/search?max_results=9", None),
            ("POST", f"{tracking}/experiments/search", {"max_results": 9}),
            ("POST", f"{tracking}/experiments/create", {"name": NAME}),
            ("PUT", f"{servers.mlflow}/api/2.0/mlflow-artifacts/artifacts/{NAME}", {}),
            ("GET", f"{servers.mlflow}/version", None),
        ]
    responses = [(f"{method} {url}", ask(method, url, body)) for method, url, body in requests]
    responses += shell_script_deployment(api, ask)
    return [f"{request}: {status}" for request, (status, _) in responses if status not in REFUSED]


def shell_script_deployment(api: str, ask: Ask) -> list[tuple[str, tuple[int, str]]]:
    """Try to create a deployment whose worker runs a shell command."""
    response = ask("POST", f"{api}/flows/", {"name": NAME})
    made = [("create a flow", response)]
    if response[0] in REFUSED:
        return made
    step = {"prefect.deployments.steps.run_shell_script": {"script": "id"}}
    new = {"name": NAME, "flow_id": json.loads(response[1])["id"], "pull_steps": [step]}
    return [*made, ("create a deployment", ask("POST", f"{api}/deployments/", new))]


def check_nothing_changed(servers: Servers) -> None:
    """The bucket has the one object, and Prefect and MLflow have no object named `NAME`."""
    store = servers.store()
    assert [each["Key"] for each in store.list_objects_v2(Bucket=BUCKET)["Contents"]] == [KEY]
    assert store.get_object(Bucket=BUCKET, Key=KEY)["Body"].read() == SECRET
    for kind in ("flows", "deployments"):
        assert NAME not in servers.asked(f"{servers.prefect}/api/{kind}/filter", {})
    if servers.mlflow:
        wanted = {"max_results": 9}
        found = servers.asked(f"{servers.mlflow}/api/2.0/mlflow/experiments/search", wanted)
        assert "Default" in found
        assert NAME not in found


def read_as_nobody(folder: Path) -> list[str]:
    """Files below a folder that the user `nobody` can read."""

    def readable() -> list[str]:
        paths = [
            os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names
        ]
        return [path for path in paths if os.access(path, os.R_OK)]

    found: list[str] = as_nobody(readable)
    return found


def shell_as_nobody(servers: Servers) -> str:
    """Output of SeaweedFS' shell for the user `nobody`, who tries to list and delete."""
    program, (master, filer) = local.weed(), (servers.s3_port + 1, servers.s3_port + 3)
    addresses = ["-master", f"127.0.0.1:{master}", "-filer", f"127.0.0.1:{filer}"]
    words = f"fs.ls /buckets\nfs.rm -r /buckets/{BUCKET}/{KEY}\ns3.configure\nexit\n"
    user = pwd.getpwnam("nobody")
    try:
        done = subprocess.run(
            [program, "shell", *addresses],
            input=words,
            env={"HOME": "/nonexistent"},
            cwd="/",
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=8,
        )
    except subprocess.TimeoutExpired as waited:
        # it retries for ever
        return (waited.stdout or b"").decode()
    return done.stdout


def breaches(servers: Servers, profile: Path) -> list[str]:
    """Try all requests, from a page and as another user; those that succeeded."""
    servers.store().put_object(Bucket=BUCKET, Key=KEY, Body=SECRET)
    found = []
    if browser.executable():
        with foreign_page(profile, servers) as fetch:
            found += [f"page: {each}" for each in accepted(servers, fetch)]
    # DNS rebinding: a page under its own name has the server's origin
    for url in filter(None, (servers.prefect, servers.mlflow)):
        host = {"Host": f"rebound.test:{url.rpartition(':')[2]}"}
        for path in ("/", "/api/health", "/health"):
            status, _ = ask(url + path, login=servers.login, headers=host)
            found += [f"foreign Host: {url}{path}: {status}"] if status not in REFUSED else []
    if os.geteuid() == 0:
        found += [f"nobody: {each}" for each in accepted(servers, ask_as_nobody)]
        found += [f"nobody reads {path}" for path in read_as_nobody(servers.work)]
        shown = shell_as_nobody(servers)
        found += [f"shell of nobody: {shown}"] if BUCKET in shown else []
    return found


def check(servers: Servers, profile: Path) -> None:
    for line in (found := breaches(servers, profile)):
        print(line)
    assert not found
    check_nothing_changed(servers)
    assert stat.S_IMODE(servers.work.stat().st_mode) == 0o700


@pytest.mark.servers
@pytest.mark.timeout(1200)
def test_up_refuses_foreign_pages_and_users(up: Servers, tmp_path: Path) -> None:
    check(up, tmp_path)
    files = [up.work / "up" / name for name in ("login", "env.sh")]
    files += [up.s3 / "s3.json", *(up.s3 / "security").iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    # a command in that folder finds the server and the login
    command = [sys.executable, "-m", "dreambooth_core.cli", "approve", "missing"]
    done = subprocess.run(command, env=environment(), cwd=up.work.parent, capture_output=True)
    assert b"expected one paused flow run missing" in done.stderr
    photos = draw_photos(tmp_path / "photos")
    push = ("dataset", "push", str(photos), "dog", "--resolution", "64", "--json")
    assert json.loads(dreambooth(*push, cwd=up.work.parent))["event_sent"]
    keys = up.store().list_objects_v2(Bucket=BUCKET)["Contents"]
    assert any("datasets/dog" in each["Key"] for each in keys)
    # websockets
    assert socket_status(up.prefect, {}) == 403
    assert socket_status(up.prefect, {"Sec-WebSocket-Protocol": "prefect"}) == 101
    for more in ({"Origin": "http://127.0.0.1:9"}, {"Host": "rebound.test:1"}):
        assert socket_status(up.prefect, {"Sec-WebSocket-Protocol": "prefect", **more}) == 403


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_refuses_foreign_pages_and_users(run: Servers, tmp_path: Path) -> None:
    check(run, tmp_path)


def socket_status(url: str, more: Mapping[str, str]) -> int:
    """Status of a websocket handshake; after 101, the login follows."""
    host, port = url.removeprefix("http://").split(":")
    headers = {
        "Host": f"{host}:{port}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
        "Sec-WebSocket-Version": "13",
        **more,
    }
    lines = [
        "GET /api/events/in HTTP/1.1",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall("\r\n".join((*lines, "", "")).encode())
        return int(connection.recv(100).split()[1])
