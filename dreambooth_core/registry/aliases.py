"""Which version of a model has which alias: a log in the store, which MLflow follows.

models/<name>/<registry>/
    aliases/000001.json     the first change: who, when, what, why, and the standing after it
    followed                number of the last change that MLflow was told of

MLflow moves an alias without looking at what it was; the log is written by create-once puts, so
that of two at once, on whatever machines, one comes after the other and knows of it. Whoever is
killed between the log and MLflow leaves a log that is ahead, and the next to look tells MLflow.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dreambooth_core import console
from dreambooth_core.errors import NotFound, StorageError
from dreambooth_core.storage.blobs import get_record, put_record
from dreambooth_core.storage.records import Record
from dreambooth_core.storage.stores import Store
from dreambooth_core.tracking.mlflow import has_version

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"


class AliasState(Record):
    """Who stands for a model."""

    candidate: str | None = None
    """The version registered last."""
    champions: tuple[str, ...] = ()
    """Versions in the order in which they went into service, without those that were taken back."""

    @property
    def champion(self) -> str | None:
        """The version in service."""
        return self.champions[-1] if self.champions else None

    @property
    def previous(self) -> str | None:
        """The version that was in service before, and is again after a rollback."""
        return self.champions[-2] if len(self.champions) > 1 else None

    @property
    def aliases(self) -> dict[str, str]:
        """Alias -> version."""
        named = {CANDIDATE: self.candidate, CHAMPION: self.champion, PREVIOUS: self.previous}
        return {alias: version for alias, version in named.items() if version is not None}

    def of(self, version: str) -> tuple[str, ...]:
        """The aliases of one version."""
        return tuple(alias for alias, one in self.aliases.items() if one == version)


Action = Literal["register", "promote", "override", "rollback", "reject"]


class AliasChange(Record):
    """One entry of the log."""

    number: int = 0
    """1 for the first."""
    action: Action
    version: str
    """The version that the change is about; for a rollback, the one taken back."""
    by: str
    when: str
    """UTC, ISO 8601, to the second."""
    reason: str = ""
    verdict: str = ""
    """Digest of the verdict that it rests on."""
    standing: AliasState = AliasState()
    """After it."""


@dataclass(frozen=True)
class AliasLog:
    """The log of one registered model."""

    store: Store
    name: str
    registry: str
    """Names the registered model for good: another one of the same name has another log."""

    @property
    def place(self) -> str:
        """Where all that belongs to the registered model lies in the store."""
        return f"models/{self.name}/{self.registry}"

    def history(self) -> tuple[AliasChange, ...]:
        """All changes, the first one first."""
        keys = self.store.keys(f"{self.place}/aliases/")
        return tuple(_change(self.store, key) for key in keys)

    def latest(self) -> AliasChange | None:
        """The last change; None for a model that was never registered."""
        key = max(self.store.keys(f"{self.place}/aliases/"), default=None)
        return None if key is None else _change(self.store, key)

    @property
    def standing(self) -> AliasState:
        """Who stands for the model now."""
        last = self.latest()
        return last.standing if last else AliasState()

    def enter(self, propose: Callable[[AliasState], AliasChange | None]) -> AliasState:
        """Add the change that `propose` makes of the standing, unless it makes none.

        It is asked again when another one came first, so it always sees what it changes.
        """
        while True:
            last = self.latest()
            standing = last.standing if last else AliasState()
            change = propose(standing)
            if change is None:
                return standing
            number = last.number + 1 if last else 1
            entry = change.model_copy(
                update={"number": number, "standing": after(standing, change)}
            )
            if put_record(self.store, f"{self.place}/aliases/{number:06d}.json", entry):
                return entry.standing

    def is_followed(self) -> bool:
        """Whether MLflow was told of the last change; costs no look at MLflow."""
        last = self.latest()
        return last is None or _followed(self) >= last.number

    def follow(self, client: Any) -> AliasState:
        """Give the versions in MLflow the aliases that the log says.

        Looks at the log again afterwards: somebody may have gone on while we were telling.
        """
        while True:
            last = self.latest()
            if last is None:
                return AliasState()
            _tell(client, self.name, last.standing)
            again = self.latest()
            if again is not None and again.number == last.number:
                self.store.put(f"{self.place}/followed", json.dumps(last.number).encode())
                return last.standing


def after(standing: AliasState, change: AliasChange) -> AliasState:
    """The standing that a change leads to; what is in service twice in a row is so once."""
    champions = standing.champions
    if change.action == "reject":
        return standing
    if change.action == "register":
        return standing.model_copy(update={"candidate": change.version})
    if change.action == "rollback":
        return standing.model_copy(update={"champions": champions[:-1]})
    if change.version != standing.champion:
        champions = (*champions, change.version)
    return standing.model_copy(update={"champions": champions})


def _tell(client: Any, name: str, standing: AliasState) -> None:
    """A version that somebody has deleted bears no alias: nor does another one in its place."""
    found = client.get_registered_model(name).aliases
    told = {alias: str(version) for alias, version in found.items()}
    for alias, version in standing.aliases.items():
        if told.get(alias) == version:
            continue
        if has_version(client, name, version):
            client.set_registered_model_alias(name, alias, version)
            continue
        console.say(f"{name}@{alias} is version {version}, which was deleted in MLflow")
        if alias in told:
            client.delete_registered_model_alias(name, alias)
    if standing.champion and standing.previous is None and PREVIOUS in told:
        client.delete_registered_model_alias(name, PREVIOUS)


def _change(store: Store, key: str) -> AliasChange:
    found = get_record(store, key, AliasChange)
    if found is None:
        raise StorageError(f"{key} has gone from {store.uri}: the log of aliases is never deleted")
    return found


def _followed(book: AliasLog) -> int:
    try:
        return int(json.loads(book.store.get(f"{book.place}/followed")))
    except NotFound:
        return 0
