"""Aliases of model versions: an append-only log in the store, to which MLflow is synchronized.

    models/<name>/<registry>/
        aliases/000001.json     the first change: action, version, user, time, reason, state after it
        synced                  number of the last change that was written to MLflow

MLflow sets an alias without comparing it with the previous value. The log is written by create-once
puts: of two concurrent changes on any machines, the second sees the first. After a crash between
log and MLflow, the next reader synchronizes MLflow.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import AliasChoices, Field

from dreambooth_core import console
from dreambooth_core.errors import NotFound, StorageError
from dreambooth_core.storage.blobs import get_record, put_record
from dreambooth_core.storage.records import Record
from dreambooth_core.storage.stores import Store
from dreambooth_core.tracking.mlflow import has_version

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"


class AliasState(Record):
    """Versions of a model that have an alias."""

    candidate: str | None = None
    """The version that was registered last."""
    champions: tuple[str, ...] = ()
    """Versions in the order of their promotions, without those that were rolled back."""

    @property
    def champion(self) -> str | None:
        """The version in service."""
        return self.champions[-1] if self.champions else None

    @property
    def previous(self) -> str | None:
        """The champion before the current one, which a rollback restores."""
        return self.champions[-2] if len(self.champions) > 1 else None

    @property
    def aliases(self) -> dict[str, str]:
        """Alias -> version."""
        named = {CANDIDATE: self.candidate, CHAMPION: self.champion, PREVIOUS: self.previous}
        return {alias: version for alias, version in named.items() if version is not None}

    def aliases_of(self, version: str) -> tuple[str, ...]:
        """Aliases of one version."""
        return tuple(alias for alias, one in self.aliases.items() if one == version)


Action = Literal["register", "promote", "override", "rollback", "reject"]


class AliasChange(Record):
    """One entry of the log."""

    number: int = 0
    """1 for the first."""
    action: Action
    version: str
    """The changed version; for a rollback, the version that is no longer champion."""
    by: str
    when: str
    """UTC, ISO 8601, to the second."""
    reason: str = ""
    verdict: str = ""
    """Digest of the verdict that allowed it."""
    state: AliasState = Field(AliasState(), validation_alias=AliasChoices("state", "standing"))
    """After the change. `standing` is its key in logs of earlier versions."""


@dataclass(frozen=True)
class AliasLog:
    """The log of one registered model."""

    store: Store
    name: str
    registry: str
    """Unique id of the registered model: a later model of the same name has its own log."""

    @property
    def prefix(self) -> str:
        """Prefix in the store of everything about the registered model."""
        return f"models/{self.name}/{self.registry}"

    def history(self) -> tuple[AliasChange, ...]:
        """All changes, oldest first."""
        keys = self.store.keys(f"{self.prefix}/aliases/")
        return tuple(_change(self.store, key) for key in keys)

    def latest(self) -> AliasChange | None:
        """The last change; None in an empty log."""
        key = max(self.store.keys(f"{self.prefix}/aliases/"), default=None)
        return None if key is None else _change(self.store, key)

    @property
    def state(self) -> AliasState:
        """State after the last change."""
        last = self.latest()
        return last.state if last else AliasState()

    def append(self, propose: Callable[[AliasState], AliasChange | None]) -> AliasState:
        """Append the change that `propose` returns for the current state, if any; the new state.

        `propose` is called again when another process appended first.
        """
        while True:
            last = self.latest()
            state = last.state if last else AliasState()
            change = propose(state)
            if change is None:
                return state
            number = last.number + 1 if last else 1
            entry = change.model_copy(update={"number": number, "state": after(state, change)})
            if put_record(self.store, f"{self.prefix}/aliases/{number:06d}.json", entry):
                return entry.state

    def is_synced(self) -> bool:
        """Whether the last change was written to MLflow; MLflow is not queried."""
        last = self.latest()
        return last is None or _synced(self) >= last.number

    def sync(self, client: Any) -> AliasState:
        """Set the aliases in MLflow to the log's state; repeated if the log grew meanwhile."""
        while True:
            last = self.latest()
            if last is None:
                return AliasState()
            _set_aliases(client, self.name, last.state)
            again = self.latest()
            if again is not None and again.number == last.number:
                self.store.put(f"{self.prefix}/synced", json.dumps(last.number).encode())
                return last.state


def after(state: AliasState, change: AliasChange) -> AliasState:
    """State after a change; promoting the champion again changes nothing."""
    champions = state.champions
    if change.action == "reject":
        return state
    if change.action == "register":
        return state.model_copy(update={"candidate": change.version})
    if change.action == "rollback":
        return state.model_copy(update={"champions": champions[:-1]})
    if change.version != state.champion:
        champions = (*champions, change.version)
    return state.model_copy(update={"champions": champions})


def _set_aliases(client: Any, name: str, state: AliasState) -> None:
    """Set the aliases in MLflow; the alias of a version that was deleted in MLflow is removed."""
    found = client.get_registered_model(name).aliases
    current = {alias: str(version) for alias, version in found.items()}
    for alias, version in state.aliases.items():
        if current.get(alias) == version:
            continue
        if has_version(client, name, version):
            client.set_registered_model_alias(name, alias, version)
            continue
        console.say(f"{name}@{alias} is version {version}, which was deleted in MLflow")
        if alias in current:
            client.delete_registered_model_alias(name, alias)
    if state.champion and state.previous is None and PREVIOUS in current:
        client.delete_registered_model_alias(name, PREVIOUS)


def _change(store: Store, key: str) -> AliasChange:
    found = get_record(store, key, AliasChange)
    if found is None:
        raise StorageError(
            f"{key} is missing in {store.uri}: restore it, the log of aliases is append-only"
        )
    return found


def _synced(log: AliasLog) -> int:
    try:
        return int(json.loads(log.store.get(f"{log.prefix}/synced")))
    except NotFound:
        return 0
