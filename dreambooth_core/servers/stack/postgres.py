"""PostgreSQL for the tables of Prefect and MLflow."""

import os
import secrets
import shutil
import subprocess
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from signal import SIGINT

from dreambooth_core.errors import ConfigError, StageFailed
from dreambooth_core.servers import local
from dreambooth_core.servers.stack.service import Service
from dreambooth_core.servers.stack.settings import StackLayout

USER = "dreambooth"
DATABASES = ("prefect", "mlflow")
_DEBIAN = Path("/usr/lib/postgresql")


def service(layout: StackLayout) -> Service:
    """The server; raises `ConfigError` for root, or if PostgreSQL or MLflow's driver is not installed."""
    if os.geteuid() == 0:
        raise ConfigError(
            "PostgreSQL does not run as root: start `dreambooth up --postgres` as another user"
        )
    if find_spec("psycopg2") is None:
        raise ConfigError(
            "MLflow has no driver for PostgreSQL: `pip install 'dreambooth-factory[postgres]'`, "
            "or omit --postgres"
        )
    data = layout.folder / "postgres" / "data"
    only_loopback = ("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=")
    return Service(
        name="postgres",
        title="PostgreSQL",
        link=f"127.0.0.1:{layout.postgres_port}",
        ports=(layout.postgres_port,),
        command=(
            *(program("postgres"), "-D", str(data), "-p", str(layout.postgres_port)),
            *only_loopback,
        ),
        env={},
        is_up=partial(_is_up, layout),
        prepare=partial(_prepare, layout, data),
        set_up=partial(_set_up, layout),
        # "fast" shutdown: does not wait for clients
        stop_signal=SIGINT,
    )


def program(name: str) -> str:
    """Path of the program, in PATH or else the newest below Debian's folder; raises `ConfigError`."""
    newest = sorted(_DEBIAN.glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    found = shutil.which(name) or next((str(path) for path in reversed(newest)), None)
    if found is None:
        raise ConfigError(
            f"--postgres needs PostgreSQL, but {name} is neither in PATH nor below {_DEBIAN}: install it "
            "(Debian: `apt install postgresql`), or omit --postgres"
        )
    return found


def url(layout: StackLayout, database: str, driver: str) -> str:
    """Database URL for SQLAlchemy, including the password."""
    address = f"127.0.0.1:{layout.postgres_port}/{database}"
    return f"postgresql+{driver}://{USER}:{_password(layout)}@{address}"


def _password(layout: StackLayout) -> str:
    return local.secret(layout.folder / "postgres" / "password", lambda: secrets.token_urlsafe(30))


def _prepare(layout: StackLayout, data: Path) -> None:
    """Create the cluster under a temporary name, then rename it: a half-made one is unusable."""
    if data.exists():
        return
    _password(layout)
    unfinished = data.with_name("data~")
    shutil.rmtree(unfinished, ignore_errors=True)
    words = ["-D", str(unfinished), "-U", USER, "--pwfile", str(data.with_name("password"))]
    _run([program("initdb"), *words, "--auth", "scram-sha-256", "-E", "UTF8", "--no-locale"])
    os.replace(unfinished, data)


def _is_up(layout: StackLayout) -> bool:
    return _psql(layout, "select 1").returncode == 0


def _set_up(layout: StackLayout) -> None:
    for name in DATABASES:
        existing = _psql(layout, f"select 1 from pg_database where datname = '{name}'")
        if not existing.stdout.strip():
            created = _psql(layout, f"create database {name}")
            if created.returncode:
                raise StageFailed(
                    f"PostgreSQL did not create the database {name}: {created.stderr}"
                )


def _psql(layout: StackLayout, query: str) -> "subprocess.CompletedProcess[str]":
    connection = ["-h", "127.0.0.1", "-p", str(layout.postgres_port), "-U", USER, "-d", "postgres"]
    return subprocess.run(
        [program("psql"), *connection, "-X", "-A", "-t", "-c", query],
        env={**os.environ, "PGPASSWORD": _password(layout), "PGCONNECT_TIMEOUT": "5"},
        capture_output=True,
        text=True,
    )


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        end = " | ".join(result.stderr.splitlines()[-3:])
        raise StageFailed(f"{Path(command[0]).name} failed: {end}")
