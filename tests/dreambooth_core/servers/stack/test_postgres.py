"""A real PostgreSQL, by a user that it accepts: made, killed, back with its data, stopped."""

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
# PostgreSQL does not run as root, whose home may hold the Python that must be read here
NOBODY = [
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
]
LIFE = """
import os, signal, sys, time
from pathlib import Path
import psycopg2
from dreambooth_core.servers.stack import postgres, state
from dreambooth_core.servers.stack.settings import Place, Settings
from dreambooth_core.servers.stack.watchdog import Watch

folder = Path(sys.argv[1])
place = Place(folder, Settings(port=int(sys.argv[2]), postgres=True), folder)
watching = Watch(folder, postgres.part(place), 0, lambda said: print(said, file=sys.stderr))

def ready(but=0):
    deadline = time.monotonic() + 120
    while watching.phase != "ready" or watching.pid == but:
        assert time.monotonic() < deadline, watching.error
        watching.step(())
        time.sleep(0.1)
    return watching.pid

def asked(query, database="mlflow"):
    uri = postgres.url(place, database, "psycopg2").replace("+psycopg2", "")
    with psycopg2.connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else None

first = ready()
asked("select 1", "prefect")
asked("create table kept as select 7 as number")
os.kill(first, signal.SIGKILL)
assert ready(but=first) != first
assert asked("select number from kept") == [(7,)]
try:
    psycopg2.connect(host="127.0.0.1", port=place.postgres_port, user=postgres.USER, password="x")
except psycopg2.OperationalError as error:
    assert "authentication failed" in str(error)
else:
    raise AssertionError("any password will do")
state.stop_all(folder)
assert not (folder / "postgres" / "data" / "postmaster.pid").exists(), "it did not end in order"
print("done")
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not below pytest's own, which another user cannot enter."""
    path = Path(tempfile.mkdtemp(prefix="up-"))
    yield path
    shutil.rmtree(path)


def test_its_life(folder: Path) -> None:
    try:
        postgres.program("initdb")
    except ConfigError as error:
        pytest.skip(str(error))
    as_whom: list[str] = []
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
        as_whom = NOBODY
    done = subprocess.run(
        [*as_whom, sys.executable, "-c", LIFE, str(folder), str(free_port(PORTS - 1))],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert stat.S_IMODE((folder / "postgres" / "password").stat().st_mode) == 0o600


def test_without_one_it_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgres, "_DEBIAN", tmp_path)
    with pytest.raises(ConfigError, match=r"there is no initdb.*leave out --postgres"):
        postgres.program("initdb")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_is_refused_in_a_sentence(tmp_path: Path) -> None:
    place = StackLayout(tmp_path, StackSettings(port=14_200, postgres=True), tmp_path)
    with pytest.raises(ConfigError, match="does not run as root"):
        postgres.part(place)
