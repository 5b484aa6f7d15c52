"""A Prefect server on loopback with all services, for triggers and schedules."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreambooth_core.servers.local import _drain_prefect, _prefect_is_up
from dreambooth_core.servers.process import Server, claimed, exported, running

ROOT = Path(__file__).parent.parent


@contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """Yield the API's URL, which is also set in the environment and in Prefect's settings."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    def command(port: int) -> list[str]:
        app = "prefect.server.api.server:create_app"
        where = ("--host", "127.0.0.1", "--port", str(port), "--lifespan", "on")
        return [sys.executable, "-m", "uvicorn", "--factory", app, *where, "--log-level", "warning"]

    quiet = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_ENABLED": "0",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    env = {**os.environ, **quiet}
    server = Server("Prefect's server", command, _prefect_is_up, env, home, 240)
    with claimed(home) as lock, exported(quiet), running(server, lock) as port:
        url = f"http://127.0.0.1:{port}/api"
        with exported({"PREFECT_API_URL": url}), temporary_settings({PREFECT_API_URL: url}):
            try:
                yield url
            finally:
                _drain_prefect()


def in_a_process(*words: str) -> str:
    """Output of `prefect ...`, run as a child process in the repository's root."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *words],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def artifacts() -> dict[str, dict[str, Any]]:
    """The newest artifact of each key."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/latest/filter", json={}).json()
    return {one["key"]: one for one in found}


def events(name: str, seconds: float = 60) -> list[dict[str, Any]]:
    """The server's events of this name, oldest first; waits for the first one."""
    from prefect.client.orchestration import get_client

    query = {"filter": {"event": {"name": [name]}}}
    deadline = time.monotonic() + seconds
    while True:
        with get_client(sync_client=True) as client:
            found = client.request("POST", "/events/filter", json=query).json()["events"]
        if found or time.monotonic() > deadline:
            return sorted(found, key=lambda event: event["occurred"])
        time.sleep(0.5)
