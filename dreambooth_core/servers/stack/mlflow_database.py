"""MLflow's tables in a sqlite file, created or migrated to the installed version."""

import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from dreambooth_core.errors import StageFailed
from dreambooth_core.runtime.processes import end_of, supervised
from dreambooth_core.storage.stores import written_beside

VERSION = "tables.version"
"""File with the MLflow version of the tables; asking the tables takes seconds."""


def prepare(path: Path, env: Mapping[str, str]) -> None:
    """Create the tables, or migrate those of an earlier MLflow.

    Works on a copy that is renamed at the end: MLflow cannot use half-made tables. Raises `StageFailed`
    with the end of MLflow's log.
    """
    installed, note = version("mlflow"), path.with_name(VERSION)
    if path.exists() and note.is_file() and note.read_text() == installed:
        return
    for unfinished in path.parent.glob("~*"):
        unfinished.unlink()
    with written_beside(path) as unfinished:
        if path.exists():
            _copy(path, unfinished)
        command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{unfinished}"]
        log = path.with_name("tables.log")
        with supervised(command, env={**env}, log=log) as process:
            status = process.wait()
        if status:
            raise StageFailed(
                f"MLflow {installed} could not create its tables in {path}: {end_of(log)}"
            )
    note.write_text(installed)


def _copy(path: Path, to: Path) -> None:
    """Copy by sqlite, which completes or rolls back the writes of a killed server."""
    with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(to)) as new:
        old.backup(new)
