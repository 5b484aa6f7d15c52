"""MLflow's tables in a sqlite file, as the installed MLflow wants them."""

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
"""File beside the tables with the MLflow that they were made for; looking at them takes seconds."""


def make(path: Path, env: Mapping[str, str]) -> None:
    """Make the tables, or bring those of an earlier MLflow up to the installed one.

    Beside and renamed: MLflow cannot go on with tables whose making was cut off, and those that it
    fails to change stay as they were. Raises `StageFailed` with the end of MLflow's log.
    """
    installed, note = version("mlflow"), path.with_name(VERSION)
    if path.exists() and note.is_file() and note.read_text() == installed:
        return
    for cut_off in path.parent.glob("~*"):
        cut_off.unlink()
    with written_beside(path) as unfinished:
        if path.exists():
            _copy(path, unfinished)
        command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{unfinished}"]
        log = path.with_name("tables.log")
        with supervised(command, env={**env}, log=log) as process:
            status = process.wait()
        if status:
            raise StageFailed(
                f"MLflow {installed} could not make its tables in {path}: {end_of(log)}"
            )
    note.write_text(installed)


def _copy(path: Path, to: Path) -> None:
    """By sqlite, which finishes or takes back what a killed server was writing."""
    with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(to)) as new:
        old.backup(new)
