"""What a stack is made of, all on 127.0.0.1: S3, Prefect, MLflow, and a worker per work pool."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from dreambooth_core import telemetry
from dreambooth_core.config import results
from dreambooth_core.servers import guarded_asgi, local
from dreambooth_core.servers.process import exported
from dreambooth_core.servers.stack import deployments, mlflow_database, postgres
from dreambooth_core.servers.stack.http import is_well
from dreambooth_core.servers.stack.service import Service, nothing
from dreambooth_core.servers.stack.settings import BUCKET, StackLayout

_THEIRS = ("AWS_", "PREFECT", "MLFLOW_", "DREAMBOOTH_", "PG")
"""Beginnings of variables that a user has set for servers elsewhere."""
_TEMPORARY_PATH = 60
"""Characters; a socket's whole path may have 103."""


def services_of(place: StackLayout) -> tuple[Service, ...]:
    """All parts, in the order of starting.

    Raises `ConfigError` for what is not installed or not to be read.
    """
    databases = (postgres.part(place),) if place.settings.postgres else ()
    workers = [
        _worker(place, pool, place.worker_port + index)
        for index, pool in enumerate(deployments.pools(place.project))
    ]
    return (*databases, _s3(place), _prefect(place), _mlflow(place), *workers)


def environment(place: StackLayout) -> dict[str, str]:
    """What a program needs to work with these servers; holds the S3 server's secret and the login."""
    access, secret = local.credentials(place.folder / "s3")
    user, password = place.login.split(":", 1)
    return {
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": place.s3,
        "MLFLOW_S3_ENDPOINT_URL": place.s3,
        "PREFECT_API_URL": f"{place.prefect}/api",
        "PREFECT_API_AUTH_STRING": place.login,
        results.SERVER: place.mlflow,
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password,
        local.STACK: str(place.folder),
        **_quiet(),
    }


@contextmanager
def client_environment(place: StackLayout) -> Iterator[None]:
    """These servers in our own environment, for boto, and none elsewhere."""
    elsewhere = dict.fromkeys(os.environ.keys() - inherited().keys())
    with exported({**elsewhere, **environment(place), **local.unproxied()}):
        yield


def inherited() -> dict[str, str]:
    """The user's environment without what points to servers elsewhere, or past ours.

    Where numbers are told to stays: there is no server of ours for that.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == telemetry.ADDRESS or not name.startswith(_THEIRS)
    }
    return {**kept, **local.unproxied()}


def _quiet() -> dict[str, str]:
    return {
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }


def _s3(place: StackLayout) -> Service:
    server = local.seaweedfs(local.weed(), place.folder / "s3")
    first = place.s3_ports[0]

    return Service(
        name="s3",
        title="S3",
        link=place.s3,
        ports=tuple(port + more for port in place.s3_ports for more in (0, 10_000)),
        command=tuple(server.command(first)),
        env=dict(server.env),
        answers=partial(local.s3_answers, first),
        settle=partial(local.make_bucket, place.s3, BUCKET),
    )


def _prefect(place: StackLayout) -> Service:
    home = place.folder / "prefect"
    # its own pages, which automations send links to, and what these ask
    own = {
        "PREFECT_HOME": str(home),
        "PREFECT_UI_URL": place.prefect,
        # relative: they may be looked at through a forwarded port
        "PREFECT_UI_API_URL": "/api",
    }
    # a training beside it may take every core for longer than its usual 5 and 10 s
    database = {
        "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
    }
    # in its memory, as usual, they would end with it, and a taken place would never be free again
    leases = {
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        )
    }
    if place.settings.postgres:
        url = postgres.url(place, "prefect", driver="asyncpg")
        database["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = url
    api = {"PREFECT_API_URL": f"{place.prefect}/api", "PREFECT_API_AUTH_STRING": place.login}
    client = {**inherited(), **_quiet(), **own, **api}
    return Service(
        name="prefect",
        title="Prefect",
        link=place.prefect,
        ports=(place.settings.port,),
        command=tuple(guarded_asgi.command(sys.executable, place.settings.port)),
        env={
            **_quiet(),
            **own,
            **database,
            **leases,
            **local.guarded_prefect(place.login, place.prefect),
            "PREFECT__SERVER_FINAL": "1",
        },
        answers=partial(is_well, f"{place.prefect}/api/health"),
        settle=partial(deployments.offer, place, client),
        after=("postgres",) if place.settings.postgres else (),
    )


def _mlflow(place: StackLayout) -> Service:
    file, made_with = place.folder / "mlflow" / "mlflow.db", {**inherited(), **_quiet()}
    uri = f"sqlite:///{file}"
    if place.settings.postgres:
        uri = postgres.url(place, "mlflow", driver="psycopg2")
    return Service(
        name="mlflow",
        title="MLflow",
        link=place.mlflow,
        ports=(place.settings.port + 1,),
        command=tuple(guarded_asgi.command(sys.executable, place.settings.port + 1)),
        env={
            **environment(place),
            guarded_asgi.APP: "mlflow.server.fastapi_app:app",
            # MLflow's own logins are rows of a database: no file to delete renews them
            guarded_asgi.LOGIN: place.login,
            # what `mlflow server` hands to the process that serves (mlflow.server.constants)
            "_MLFLOW_SERVER_FILE_STORE": uri,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"s3://{BUCKET}/mlflow",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        answers=partial(is_well, f"{place.mlflow}/health"),
        make=nothing if place.settings.postgres else partial(mlflow_database.make, file, made_with),
        after=("s3", "postgres") if place.settings.postgres else ("s3",),
    )


def _worker(place: StackLayout, pool: str, port: int) -> Service:
    name = f"up-{pool}"
    words = ("worker", "start", "--pool", pool, "--type", "process", "--name", name)

    def answers() -> bool:
        return is_well(f"http://127.0.0.1:{port}/health") and deployments.has_worker(
            place, pool, name
        )

    return Service(
        name=f"worker-{pool}",
        title="Worker",
        link=f"http://127.0.0.1:{port}/health",
        ports=(port,),
        command=(sys.executable, "-m", "prefect", *words, "--with-healthcheck"),
        env={
            **environment(place),
            **_temporary(place),
            "PREFECT_HOME": str(place.folder / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": str(deployments.HEARTBEAT_SECONDS),
            "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
            "PREFECT_WORKER_WEBSERVER_PORT": str(port),
        },
        answers=answers,
        make=partial(deployments.take_up, place, pool, name),
        after=("s3", "prefect", "mlflow"),
        cwd=place.project,
        # a training saves its state before it ends
        grace=90.0,
        leaves_work=True,
    )


def _temporary(place: StackLayout) -> dict[str, str]:
    """A folder of our own: Prefect's workers share /tmp/runner_storage, which the first user owns.

    Nothing where the path is so long that sockets below it would have no valid one.
    """
    path = place.folder / "tmp"
    path.mkdir(exist_ok=True)
    return {"TMPDIR": str(path)} if len(os.fsencode(path)) <= _TEMPORARY_PATH else {}
