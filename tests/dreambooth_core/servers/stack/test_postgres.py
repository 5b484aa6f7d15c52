"""A real PostgreSQL as a user that it accepts: created, killed, restarted with its data, stopped."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core.errors import ConfigError
from dreambooth_core.servers.process import free_port
from dreambooth_core.servers.stack import postgres
from dreambooth_core.servers.stack.settings import PORTS, StackLayout, StackSettings

ROOT = Path(__file__).parents[4]
# PostgreSQL does not run as root; this Python may be in root's home, which nobody must read
NOBODY = [
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
]
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import psycopg2
from dreambooth_core.servers.stack import postgres, state
from dreambooth_core.servers.stack.settings import StackLayout, StackSettings
from dreambooth_core.servers.stack.watchdog import Watchdog

folder = Path(sys.argv[1])
layout = StackLayout(folder, StackSettings(port=int(sys.argv[2]), postgres=True), folder)
watchdog = Watchdog(folder, postgres.service(layout), 0, lambda line: print(line, file=sys.stderr))

def ready(but=0):
    deadline = time.monotonic() + 120
    while watchdog.phase != "ready" or watchdog.pid == but:
        assert time.monotonic() < deadline, watchdog.error
        watchdog.step(())
        time.sleep(0.1)
    return watchdog.pid

def run(query, database="mlflow"):
    uri = postgres.url(layout, database, "psycopg2").replace("+psycopg2", "")
    with psycopg2.connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else None

first = ready()
run("select 1", "prefect")
run("create table kept as select 7 as number")
os.kill(first, signal.SIGKILL)
assert ready(but=first) != first
assert run("select number from kept") == [(7,)]
try:
    psycopg2.connect(host="127.0.0.1", port=layout.postgres_port, user=postgres.USER, password="x")
except psycopg2.OperationalError as error:
    assert "authentication failed" in str(error)
else:
    raise AssertionError("any password is accepted")
state.stop_all(folder)
assert not (folder / "postgres" / "data" / "postmaster.pid").exists(), "no clean shutdown"
print("done")
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder outside pytest's, which another user cannot enter."""
    path = Path(tempfile.mkdtemp(prefix="up-"))
    yield path
    shutil.rmtree(path)


def test_postgres_is_created_restarted_and_stopped(folder: Path) -> None:
    try:
        postgres.program("initdb")
    except ConfigError as error:
        pytest.skip(str(error))
    user: list[str] = []
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
        user = NOBODY
    done = subprocess.run(
        [*user, sys.executable, "-c", SCRIPT, str(folder), str(free_port(PORTS - 1))],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert stat.S_IMODE((folder / "postgres" / "password").stat().st_mode) == 0o600


def test_a_missing_postgres_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgres, "_DEBIAN", tmp_path)
    with pytest.raises(ConfigError, match=r"initdb is neither in PATH.*omit --postgres"):
        postgres.program("initdb")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_is_refused(tmp_path: Path) -> None:
    layout = StackLayout(tmp_path, StackSettings(port=14_200, postgres=True), tmp_path)
    with pytest.raises(ConfigError, match="does not run as root"):
        postgres.service(layout)
