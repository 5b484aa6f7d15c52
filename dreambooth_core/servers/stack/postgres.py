"""PostgreSQL for Prefect's and MLflow's tables, where one is installed."""

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


def part(place: StackLayout) -> Service:
    """The server; raises `ConfigError` when it or MLflow's driver is not there, and for root."""
    if os.geteuid() == 0:
        raise ConfigError(
            "PostgreSQL does not run as root: start `dreambooth up --postgres` as another user"
        )
    if find_spec("psycopg2") is None:
        raise ConfigError(
            "MLflow has no driver for PostgreSQL: `pip install 'dreambooth-factory[postgres]'`, "
            "or leave out --postgres"
        )
    data = place.folder / "postgres" / "data"
    only_loopback = ("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=")
    return Service(
        name="postgres",
        title="PostgreSQL",
        link=f"127.0.0.1:{place.postgres_port}",
        ports=(place.postgres_port,),
        command=(
            *(program("postgres"), "-D", str(data), "-p", str(place.postgres_port)),
            *only_loopback,
        ),
        env={},
        answers=partial(_answers, place),
        make=partial(_make, place, data),
        settle=partial(_settle, place),
        # "fast": it does not wait for its clients
        stop_signal=SIGINT,
    )


def program(name: str) -> str:
    """Its path: in PATH, else the newest below Debian's; raises `ConfigError` without one."""
    newest = sorted(_DEBIAN.glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    found = shutil.which(name) or next((str(path) for path in reversed(newest)), None)
    if found is None:
        raise ConfigError(
            f"--postgres needs an installed PostgreSQL, and there is no {name} in PATH or below "
            f"{_DEBIAN}: install it (Debian: `apt install postgresql`), or leave out --postgres"
        )
    return found


def url(place: StackLayout, database: str, driver: str) -> str:
    """For SQLAlchemy; holds the password."""
    where = f"127.0.0.1:{place.postgres_port}/{database}"
    return f"postgresql+{driver}://{USER}:{_password(place)}@{where}"


def _password(place: StackLayout) -> str:
    return local.secret(place.folder / "postgres" / "password", lambda: secrets.token_urlsafe(30))


def _make(place: StackLayout, data: Path) -> None:
    """A cluster beside and renamed: one whose making was cut off is of no use."""
    if data.exists():
        return
    _password(place)
    unfinished = data.with_name("data~")
    shutil.rmtree(unfinished, ignore_errors=True)
    words = ["-D", str(unfinished), "-U", USER, "--pwfile", str(data.with_name("password"))]
    _done([program("initdb"), *words, "--auth", "scram-sha-256", "-E", "UTF8", "--no-locale"])
    os.replace(unfinished, data)


def _answers(place: StackLayout) -> bool:
    return _psql(place, "select 1").returncode == 0


def _settle(place: StackLayout) -> None:
    for name in DATABASES:
        there = _psql(place, f"select 1 from pg_database where datname = '{name}'")
        if not there.stdout.strip():
            made = _psql(place, f"create database {name}")
            if made.returncode:
                raise StageFailed(f"PostgreSQL did not make the database {name}: {made.stderr}")


def _psql(place: StackLayout, query: str) -> "subprocess.CompletedProcess[str]":
    where = ["-h", "127.0.0.1", "-p", str(place.postgres_port), "-U", USER, "-d", "postgres"]
    return subprocess.run(
        [program("psql"), *where, "-X", "-A", "-t", "-c", query],
        env={**os.environ, "PGPASSWORD": _password(place), "PGCONNECT_TIMEOUT": "5"},
        capture_output=True,
        text=True,
    )


def _done(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        end = " | ".join(done.stderr.splitlines()[-3:])
        raise StageFailed(f"{Path(command[0]).name} failed: {end}")
