"""`dreambooth doctor`: one check per module, found by its file name.

A new check is one new module here with

    def check(target: CheckTarget) -> Iterator[CheckResult]

It changes nothing, must not raise, and takes a few seconds at most.
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
NO_SERVER = "no server in the environment, and no `dreambooth up` runs in --folder: start it"


class CheckResult(Record):
    """Result of a check."""

    check: str
    level: Level
    sentence: str
    """The finding; for `warning` and `broken`, also the remedy."""


@dataclass(frozen=True)
class CheckTarget:
    """The servers and folder to check."""

    folder: Path
    """Folder of the stack, absolute; may not exist."""
    settings: StackSettings | None = None
    """None before the first `dreambooth up`."""
    storage: Storage | None = None
    """The store, its credentials in the environment; None for none."""
    prefect: str | None = None
    """URL of the server, without `/api`."""
    mlflow: str | None = None


@dataclass(frozen=True)
class CheckedServer:
    """A server whose version must match its installed client."""

    name: str
    """Name of the check and of the client's package."""
    url: str | None
    health: str
    """Path of the health check."""
    version: str
    """Path of the version."""
    credentials: str
    """`user:password`; empty for none."""
    remedy: str
    """Remedy for refused credentials."""


def checked(server: CheckedServer) -> CheckResult:
    """Whether the server responds, accepts the credentials, and has the client's version."""
    if server.url is None:
        return CheckResult(check=server.name, level="skipped", sentence=NO_SERVER)
    url, client = server.url, version(server.name)
    health, reported = (
        ask(f"{url}{path}", credentials=server.credentials)
        for path in (server.health, server.version)
    )
    if {answer.status for answer in (health, reported) if answer} & {401, 403}:
        sentence = (
            f"{url} refuses {'the' if server.credentials else 'requests without'} credentials: "
        )
        return CheckResult(check=server.name, level="broken", sentence=sentence + server.remedy)
    if health is None or reported is None or health.status != 200:
        sentence = f"no valid response from {url}: restart `dreambooth up`, or read its log"
        return CheckResult(check=server.name, level="broken", sentence=sentence)
    installed = reported.body.decode(errors="replace").strip().strip('"')
    if installed == client:
        sentence = f"{url} works and has the client's version {client}"
        return CheckResult(check=server.name, level="ok", sentence=sentence)
    sentence = (
        f"{url} has version {installed}, the client has {client}: install the server's version "
        "with pip, or restart the server (`dreambooth down`, `dreambooth up`)"
    )
    return CheckResult(check=server.name, level="warning", sentence=sentence)


def examine(folder: Path, store: Storage | None = None) -> list[CheckResult]:
    """Results of all checks, by name, on the servers of the environment or else of the stack.

    `store`, unless it is the local one, is checked instead of theirs.
    """
    with _target(folder, store) as target:
        return [
            result
            for name in plugins.names(__name__)
            for result in plugins.load(__name__, name).check(target)
        ]


@contextmanager
def _target(folder: Path, store: Storage | None) -> Iterator[CheckTarget]:
    """The servers of the environment, else those of a running stack, with their credentials set."""
    settings = _settings(folder)
    get = os.environ.get
    storage = Storage(endpoint=None) if get("AWS_ENDPOINT_URL_S3") else None
    if store is not None and store.endpoint != "local":
        storage = store
    external = CheckTarget(
        folder=folder,
        settings=settings,
        storage=storage,
        prefect=(get("PREFECT_API_URL") or "").removesuffix("/api") or None,
        mlflow=get(results.SERVER) or None,
    )
    if external.storage or external.prefect or external.mlflow:
        yield external
    elif settings is None or not state.marked(folder):
        yield CheckTarget(folder=folder, settings=settings)
    else:
        layout = StackLayout(folder, settings, Path.cwd())
        with client_environment(layout):
            local = Storage(endpoint=layout.s3)
            yield CheckTarget(folder, settings, local, layout.prefect, layout.mlflow)


def _settings(folder: Path) -> StackSettings | None:
    try:
        return read_settings(folder)
    except DreamBoothError:
        return None
