"""`dreambooth doctor`: one check per file, found by its name; each says what it saw and what to do.

A new check is one new file here with

    def check(site: Site) -> Iterator[Finding]

It changes nothing, must not raise, and takes seconds at most.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from dreambooth_core import plugins
from dreambooth_core.config import Storage, results
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.servers.stack import state
from dreambooth_core.servers.stack.http import ask
from dreambooth_core.servers.stack.services import client_environment
from dreambooth_core.servers.stack.settings import StackLayout, StackSettings, read_settings
from dreambooth_core.storage.records import Record

Level = Literal["ok", "skipped", "warning", "broken"]
NOTHING_UP = "no server is named by the environment or up here: start `dreambooth up`"


class CheckResult(Record):
    """What a check saw."""

    check: str
    level: Level
    sentence: str
    """What is so, and for warnings and broken things what to do."""


@dataclass(frozen=True)
class CheckTarget:
    """What is to be looked at."""

    folder: Path
    """Of the stack, there or not; absolute."""
    settings: StackSettings | None = None
    """None before the first `dreambooth up`."""
    storage: Storage | None = None
    """The store in use, whose keys are in the environment; None without one."""
    prefect: str | None = None
    """Address of the server, without `/api`."""
    mlflow: str | None = None


@dataclass(frozen=True)
class CheckedServer:
    """One of those that have a client of their own version here."""

    name: str
    """Of the check, and of the library."""
    url: str | None
    health: str
    """Paths that answer."""
    version: str
    credentials: str
    """`user:password` from the environment; empty for none."""
    remedy: str
    """What to do where they are refused."""


def checked(server: CheckedServer) -> CheckResult:
    """Whether it is well, lets us in, and is of the version of our client."""
    if server.url is None:
        return CheckResult(check=server.name, level="skipped", sentence=NOTHING_UP)
    url, ours = server.url, version(server.name)
    health, told = (
        ask(f"{url}{path}", credentials=server.credentials)
        for path in (server.health, server.version)
    )
    if {answer.status for answer in (health, told) if answer} & {401, 403}:
        sentence = f"{url} refuses {'the' if server.credentials else 'us without'} credentials: "
        return CheckResult(check=server.name, level="broken", sentence=sentence + server.remedy)
    if health is None or told is None or health.status != 200:
        sentence = f"no good answer from {url}: start `dreambooth up` again, or see its log"
        return CheckResult(check=server.name, level="broken", sentence=sentence)
    theirs = told.body.decode(errors="replace").strip().strip('"')
    if theirs == ours:
        sentence = f"{url} is well and of our version {ours}"
        return CheckResult(check=server.name, level="ok", sentence=sentence)
    sentence = (
        f"{url} is of version {theirs}, the client of {ours}: install the server's with "
        "pip, or restart the server (`dreambooth down`, `dreambooth up`)"
    )
    return CheckResult(check=server.name, level="warning", sentence=sentence)


def examine(folder: Path, store: Storage | None = None) -> list[CheckResult]:
    """All checks, in the order of their names, of what the environment names, else of the stack.

    `store` is looked at in the place of theirs, unless it is the local one.
    """
    with _site(folder, store) as site:
        return [
            finding
            for name in plugins.names(__name__)
            for finding in plugins.load(__name__, name).check(site)
        ]


@contextmanager
def _site(folder: Path, store: Storage | None) -> Iterator[CheckTarget]:
    """Servers of the environment, with its keys; where it names none, the stack's with theirs."""
    settings = _settings(folder)
    named = os.environ.get
    theirs = Storage(endpoint=None) if named("AWS_ENDPOINT_URL_S3") else None
    if store is not None and store.endpoint != "local":
        theirs = store
    elsewhere = CheckTarget(
        folder=folder,
        settings=settings,
        storage=theirs,
        prefect=(named("PREFECT_API_URL") or "").removesuffix("/api") or None,
        mlflow=named(results.SERVER) or None,
    )
    if elsewhere.storage or elsewhere.prefect or elsewhere.mlflow:
        yield elsewhere
    elif settings is None or not state.marked(folder):
        yield CheckTarget(folder=folder, settings=settings)
    else:
        place = StackLayout(folder, settings, Path.cwd())
        with client_environment(place):
            storage = Storage(endpoint=place.s3)
            yield CheckTarget(folder, settings, storage, place.prefect, place.mlflow)


def _settings(folder: Path) -> StackSettings | None:
    try:
        return read_settings(folder)
    except DreamBoothError:
        return None
