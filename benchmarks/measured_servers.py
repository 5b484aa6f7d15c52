"""Servers of the benchmarks on loopback: SeaweedFS with request counts, Prefect, MLflow."""

import json
import os
import re
import secrets
import shutil
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreambooth_core.servers.process import Server, claimed, exported, running

SECONDS = 240.0
"""Time limit of a server's start."""
BUCKET = "dreambooth"
QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
_REQUESTS = re.compile(
    r'^SeaweedFS_s3_request_total\{.*?bucket="([^"]*)".*?type="([^"]+)".*\} (\S+)$', re.MULTILINE
)
_BYTES = re.compile(
    r"^SeaweedFS_s3_bucket_traffic_(received|sent)_bytes_total\S* (\S+)$", re.MULTILINE
)


def get(url: str) -> str:
    """Body of the response to a GET, without proxies."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=10) as answer:
        return str(answer.read().decode())


def posted(url: str, document: object) -> list[dict[str, Any]]:
    """Rows of the JSON response to a POST, without proxies."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = json.dumps(document).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with direct.open(request, timeout=60) as answer:
        rows: list[dict[str, Any]] = json.load(answer)
    return rows


@contextmanager
def s3(folder: Path) -> Iterator[tuple[str, Callable[[], Counter[str]]]]:
    """SeaweedFS with an empty bucket; its credentials are in the environment.

    Yields its URL, and a function for the server's counts since its start: requests by kind, bytes.
    """
    pair = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_hex(20)}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "benchmark", "credentials": [pair], "actions": actions}
    for made in (folder / "data", folder / "logs"):
        made.mkdir(parents=True)
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    weed = str(Path(sys.executable).with_name("weed"))

    def command(port: int) -> list[str]:
        names = ("s3", "master", "volume", "filer", "admin")
        return [
            *(shutil.which(weed) or "weed", f"-logdir={folder / 'logs'}", "mini"),
            *(f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-{name}.port={port + index}" for index, name in enumerate(names)),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
            *("-master.telemetry=false", f"-s3.config={folder / 's3.json'}"),
            *(f"-metricsPort={port + 5}", f"-bucket={BUCKET}", f"-s3.localSocket={folder / 's'}"),
        ]

    def answers(port: int) -> bool:
        from dreambooth_core.storage.stores.s3 import client

        try:
            return bool(client(f"http://127.0.0.1:{port}", attempts=1).list_buckets()["Buckets"])
        except Exception:
            return False

    names = {"AWS_ACCESS_KEY_ID": pair["accessKey"], "AWS_SECRET_ACCESS_KEY": pair["secretKey"]}
    env = {"HOME": str(folder), "GOMEMLIMIT": "300MiB", "GOGC": "50"}
    server = Server("SeaweedFS", command, answers, env, folder, SECONDS, neighbours=5)
    with (
        exported({**names, "AWS_DEFAULT_REGION": "us-east-1"}),
        claimed(folder) as lock,
        running(server, lock) as port,
    ):
        yield f"http://127.0.0.1:{port}", lambda: _counted(port + 5)


def _counted(port: int) -> Counter[str]:
    metrics = get(f"http://127.0.0.1:{port}/metrics")
    found: Counter[str] = Counter()
    for bucket, kind, value in _REQUESTS.findall(metrics):
        if bucket == BUCKET:
            found[kind] += int(float(value))
    for direction, value in _BYTES.findall(metrics):
        found[f"bytes {direction}"] += int(float(value))
    return found


@contextmanager
def prefect(folder: Path, postgres: str | None = None) -> Iterator[str]:
    """Prefect's server with its background services; yields the URL of its API.

    `postgres`: USER:PASSWORD@HOST:PORT of a PostgreSQL server with the database `prefect`; default: sqlite.
    """

    def command(port: int) -> list[str]:
        words = ("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        return [sys.executable, *words, "--log-level", "WARNING"]

    home = folder / "home"
    env = {**os.environ, **QUIET, "PREFECT_HOME": str(home)}
    if postgres:
        url = f"postgresql+asyncpg://{postgres}/prefect"
        env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = url
    server = Server("Prefect's server", command, _responds("/api/health"), env, folder, SECONDS)
    with claimed(folder) as lock, running(server, lock) as port:
        url = f"http://127.0.0.1:{port}/api"
        with exported({**QUIET, "PREFECT_HOME": str(home), "PREFECT_API_URL": url}):
            yield url


@contextmanager
def mlflow(folder: Path, postgres: str | None = None) -> Iterator[str]:
    """MLflow's server, on sqlite or on the database `mlflow` of a PostgreSQL server; yields its URL."""

    def command(port: int) -> list[str]:
        words = ("-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port))
        artifacts = str(folder / "artifacts")
        return [
            *(sys.executable, *words, "--workers", "1"),
            *("--artifacts-destination", artifacts),
        ]

    tables = f"postgresql+psycopg2://{postgres}/mlflow" if postgres else ""
    tables = tables or f"sqlite:///{folder / 'mlflow.db'}"
    env = {**os.environ, **QUIET, "MLFLOW_BACKEND_STORE_URI": tables}
    server = Server("MLflow's server", command, _responds("/health"), env, folder, SECONDS)
    with exported(QUIET), claimed(folder) as lock, running(server, lock) as port:
        yield f"http://127.0.0.1:{port}"


def _responds(path: str) -> Callable[[int], bool]:
    def answers(port: int) -> bool:
        try:
            get(f"http://127.0.0.1:{port}{path}")
        except OSError:
            return False
        return True

    return answers
