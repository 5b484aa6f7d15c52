"""The services of a stack, all on 127.0.0.1: S3, Prefect, MLflow, and a worker per work pool."""

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
from dreambooth_core.servers.stack.http import is_healthy
from dreambooth_core.servers.stack.service import Service, nothing
from dreambooth_core.servers.stack.settings import BUCKET, StackLayout

_FOREIGN = ("AWS_", "PREFECT", "MLFLOW_", "DREAMBOOTH_", "PG")
"""Prefixes of environment variables that may point to other servers."""
_TEMPORARY_PATH = 60
"""Characters of the longest TMPDIR; sockets below it may have 103."""


def services_of(layout: StackLayout) -> tuple[Service, ...]:
    """All services, in the order of starting.

    Raises `ConfigError` if something is not installed or `prefect.yaml` cannot be read.
    """
    databases = (postgres.service(layout),) if layout.settings.postgres else ()
    workers = [
        _worker(layout, pool, layout.worker_port + index)
        for index, pool in enumerate(deployments.pools(layout.project))
    ]
    return (*databases, _s3(layout), _prefect(layout), _mlflow(layout), *workers)


def environment(layout: StackLayout) -> dict[str, str]:
    """Environment of clients of these servers, including the S3 secret and the login."""
    access, secret = local.credentials(layout.folder / "s3")
    user, password = layout.login.split(":", 1)
    return {
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": layout.s3,
        "MLFLOW_S3_ENDPOINT_URL": layout.s3,
        "PREFECT_API_URL": f"{layout.prefect}/api",
        "PREFECT_API_AUTH_STRING": layout.login,
        results.SERVER: layout.mlflow,
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password,
        local.STACK: str(layout.folder),
        **_quiet(),
    }


@contextmanager
def client_environment(layout: StackLayout) -> Iterator[None]:
    """Set the environment of clients of these servers, and unset variables for other servers."""
    foreign = dict.fromkeys(os.environ.keys() - inherited().keys())
    with exported({**foreign, **environment(layout), **local.unproxied()}):
        yield


def inherited() -> dict[str, str]:
    """The user's environment without variables for other servers.

    The address of the metrics exporter is kept: the stack has none of its own.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == telemetry.ADDRESS or not name.startswith(_FOREIGN)
    }
    return {**kept, **local.unproxied()}


def _quiet() -> dict[str, str]:
    return {
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }


def _s3(layout: StackLayout) -> Service:
    server = local.seaweedfs(local.weed(), layout.folder / "s3")
    first = layout.s3_ports[0]

    return Service(
        name="s3",
        title="S3",
        link=layout.s3,
        ports=tuple(port + more for port in layout.s3_ports for more in (0, 10_000)),
        command=tuple(server.command(first)),
        env=dict(server.env),
        is_up=partial(local.s3_is_up, first),
        set_up=partial(local.make_bucket, layout.s3, BUCKET),
    )


def _prefect(layout: StackLayout) -> Service:
    home = layout.folder / "prefect"
    # the UI, for links in automations, and the API that it calls
    ui = {
        "PREFECT_HOME": str(home),
        "PREFECT_UI_URL": layout.prefect,
        # relative, because the UI may be opened through a forwarded port
        "PREFECT_UI_API_URL": "/api",
    }
    # a training may occupy all cores for longer than the defaults, 5 and 10 s
    database = {
        "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
    }
    # in memory, the default, leases end with the server and their slots stay occupied
    leases = {
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        )
    }
    if layout.settings.postgres:
        url = postgres.url(layout, "prefect", driver="asyncpg")
        database["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = url
    api = {"PREFECT_API_URL": f"{layout.prefect}/api", "PREFECT_API_AUTH_STRING": layout.login}
    client = {**inherited(), **_quiet(), **ui, **api}
    return Service(
        name="prefect",
        title="Prefect",
        link=layout.prefect,
        ports=(layout.settings.port,),
        command=tuple(guarded_asgi.command(sys.executable, layout.settings.port)),
        env={
            **_quiet(),
            **ui,
            **database,
            **leases,
            **local.guarded_prefect(layout.login, layout.prefect),
            "PREFECT__SERVER_FINAL": "1",
        },
        is_up=partial(is_healthy, f"{layout.prefect}/api/health"),
        set_up=partial(deployments.deploy, layout, client),
        after=("postgres",) if layout.settings.postgres else (),
    )


def _mlflow(layout: StackLayout) -> Service:
    file, environ = layout.folder / "mlflow" / "mlflow.db", {**inherited(), **_quiet()}
    uri = f"sqlite:///{file}"
    if layout.settings.postgres:
        uri = postgres.url(layout, "mlflow", driver="psycopg2")
    return Service(
        name="mlflow",
        title="MLflow",
        link=layout.mlflow,
        ports=(layout.settings.port + 1,),
        command=tuple(guarded_asgi.command(sys.executable, layout.settings.port + 1)),
        env={
            **environment(layout),
            guarded_asgi.APP: "mlflow.server.fastapi_app:app",
            # MLflow's own logins are in a database, where deleting a file cannot renew them
            guarded_asgi.LOGIN: layout.login,
            # set by `mlflow server` for its server process (mlflow.server.constants)
            "_MLFLOW_SERVER_FILE_STORE": uri,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"s3://{BUCKET}/mlflow",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        is_up=partial(is_healthy, f"{layout.mlflow}/health"),
        prepare=nothing
        if layout.settings.postgres
        else partial(mlflow_database.prepare, file, environ),
        after=("s3", "postgres") if layout.settings.postgres else ("s3",),
    )


def _worker(layout: StackLayout, pool: str, port: int) -> Service:
    name = f"up-{pool}"
    words = ("worker", "start", "--pool", pool, "--type", "process", "--name", name)

    def is_up() -> bool:
        return is_healthy(f"http://127.0.0.1:{port}/health") and deployments.has_worker(
            layout, pool, name
        )

    return Service(
        name=f"worker-{pool}",
        title="Worker",
        link=f"http://127.0.0.1:{port}/health",
        ports=(port,),
        command=(sys.executable, "-m", "prefect", *words, "--with-healthcheck"),
        env={
            **environment(layout),
            **_temporary(layout),
            "PREFECT_HOME": str(layout.folder / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": str(deployments.HEARTBEAT_SECONDS),
            "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
            "PREFECT_WORKER_WEBSERVER_PORT": str(port),
        },
        is_up=is_up,
        prepare=partial(deployments.reschedule_lost_runs, layout, pool, name),
        after=("s3", "prefect", "mlflow"),
        cwd=layout.project,
        # a training saves a checkpoint before it ends
        grace=90.0,
        children_outlive=True,
    )


def _temporary(layout: StackLayout) -> dict[str, str]:
    """TMPDIR in the stack's folder: /tmp/runner_storage of Prefect's workers belongs to its first user.

    Empty if paths of sockets below it would be too long.
    """
    path = layout.folder / "tmp"
    path.mkdir(exist_ok=True)
    return {"TMPDIR": str(path)} if len(os.fsencode(path)) <= _TEMPORARY_PATH else {}
