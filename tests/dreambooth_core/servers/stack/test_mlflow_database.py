"""Migration of MLflow's tables of an earlier version."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from dreambooth_core.errors import StageFailed
from dreambooth_core.servers.stack import mlflow_database

EARLIER = """
import sys, sqlalchemy
from alembic import command
from alembic.script import ScriptDirectory
from mlflow.store.db.utils import InitialBase, _get_alembic_config
engine = sqlalchemy.create_engine(sys.argv[1])
InitialBase.metadata.create_all(engine)
config = _get_alembic_config(sys.argv[1])
scripts = ScriptDirectory.from_config(config)
before = scripts.get_revision(scripts.get_current_head()).down_revision
with engine.begin() as connection:
    config.attributes["connection"] = connection
    command.upgrade(config, before)
    row = "INSERT INTO experiments (name, lifecycle_stage) VALUES ('kept', 'active')"
    connection.execute(sqlalchemy.text(row))
"""


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """Tables one step behind the installed MLflow's, with an experiment."""
    path = tmp_path / "mlflow.db"
    command = [sys.executable, "-c", EARLIER, f"sqlite:///{path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


def revision(path: Path) -> str:
    with closing(sqlite3.connect(path)) as database:
        ((found,),) = database.execute("SELECT version_num FROM alembic_version")
        return str(found)


def experiments(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as database:
        return {name for (name,) in database.execute("SELECT name FROM experiments")}


@pytest.mark.slow
def test_earlier_tables_are_migrated_with_their_rows(earlier: Path, mlflow_tables: Path) -> None:
    before = revision(earlier)
    mlflow_database.prepare(earlier, os.environ)
    assert before != revision(earlier) == revision(mlflow_tables)
    assert "kept" in experiments(earlier)
    assert not list(earlier.parent.glob("~*"))

    written = earlier.stat().st_mtime_ns
    mlflow_database.prepare(earlier, {})  # an environment without PATH: no process can be started
    assert earlier.stat().st_mtime_ns == written


@pytest.mark.slow
def test_tables_that_mlflow_cannot_migrate_are_not_changed(
    mlflow_tables: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(mlflow_tables.read_bytes())
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'unknown'")
        database.commit()
    before = path.read_bytes()
    with pytest.raises(StageFailed, match=r"could not create its tables in .*mlflow\.db"):
        mlflow_database.prepare(path, os.environ)
    assert path.read_bytes() == before
    assert not (path.with_name(mlflow_database.VERSION)).exists()
