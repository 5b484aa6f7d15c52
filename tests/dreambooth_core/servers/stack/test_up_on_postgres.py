"""`dreambooth up --postgres` as a user that PostgreSQL accepts: tables, and shutdown."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dreambooth_core.errors import ConfigError
from dreambooth_core.servers.process import free_port, is_free
from dreambooth_core.servers.stack import postgres, state
from dreambooth_core.servers.stack.http import ask
from dreambooth_core.servers.stack.settings import PORTS, StackLayout, ports_in_use, read_settings
from tests.dreambooth_core.servers.stack.test_postgres import NOBODY, ROOT

pytestmark = [pytest.mark.servers, pytest.mark.timeout(1200)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder outside pytest's, which the servers' user can enter."""
    path = Path(tempfile.mkdtemp(prefix="up-"))
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
        _copy_python(path / "venv")
    yield path
    _dreambooth(path, "down")
    state.sweep(path / "up")
    shutil.rmtree(path)


@pytest.fixture
def project(folder: Path) -> Path:
    """This project with a single deployment."""
    path = folder / "project"
    path.mkdir()
    (path / "flows").symlink_to(ROOT / "flows")
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    [train] = [one for one in document["deployments"] if one["name"] == "train"]
    document = {"name": document["name"], "deployments": [train]}
    (path / "prefect.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def _copy_python(venv: Path) -> None:
    """Copy this Python outside root's home, with links to its libraries."""
    (venv / "bin").mkdir(parents=True)
    shutil.copy(Path(sys.executable).resolve(), venv / "bin" / "python")
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", venv)
    for name in ("lib", "bin/weed"):
        (venv / name).symlink_to(Path(sys.prefix) / name)


def _dreambooth(folder: Path, *words: str) -> str:
    """Output of a command, with HOME set: the user `nobody` has none."""
    python = [sys.executable]
    if os.geteuid() == 0:
        python = [*NOBODY, str(folder / "venv" / "bin" / "python")]
    quiet = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*python, "-m", "dreambooth_core.cli", *words, "--folder", str(folder / "up")],
        env={**os.environ, **quiet, "HOME": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _query(layout: StackLayout, database: str, query: str) -> set[str]:
    """The first column of a query's result."""
    import psycopg2  # type: ignore[import-untyped]

    uri = postgres.url(layout, database, "psycopg2").replace("+psycopg2", "")
    with psycopg2.connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return {row[0] for row in cursor.fetchall()}


def test_prefect_and_mlflow_use_postgres(folder: Path, project: Path) -> None:
    try:
        postgres.program("initdb")
    except ConfigError as error:
        pytest.skip(str(error))
    port = str(free_port(PORTS - 1))
    words = ("--postgres", "--detach", "--port", port, "--project", str(project))
    _dreambooth(folder, "up", *words)
    settings = read_settings(folder / "up")
    assert settings is not None
    layout = StackLayout(folder / "up", settings, project)

    answer = ask(f"{layout.prefect}/api/deployments/filter", {}, credentials=layout.login)
    assert answer is not None
    assert [one["name"] for one in answer.document()] == ["train"]
    assert _query(layout, "prefect", "select name from deployment") == {"train"}
    url = f"{layout.mlflow}/api/2.0/mlflow/experiments/create"
    made = ask(url, {"name": "manual"}, credentials=layout.login)
    assert made is not None
    assert "manual" in _query(layout, "mlflow", "select name from experiments")
    assert not list(layout.folder.rglob("*.db"))
    # no password in the list of processes
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert (layout.folder / "postgres" / "password").read_text() not in listing

    assert "processes stopped" in _dreambooth(folder, "down")
    assert state.marked(layout.folder) == []
    assert all(map(is_free, ports_in_use(settings)))
    assert not (layout.folder / "postgres" / "data" / "postmaster.pid").exists()
