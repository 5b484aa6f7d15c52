"""Registered versions as they are looked at: one with all its records, or all in a list."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError
from dreambooth_core.registry.aliases import AliasLog
from dreambooth_core.registry.provenance import read_provenance, run_inputs
from dreambooth_core.registry.register import (
    RegisteredModel,
    book_of,
    find_version,
    followed,
    tracking_place,
)
from dreambooth_core.reports.summary import Summary
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.records import ImageSet, ModelVersion, Record, Scores, Verdict, Weights
from dreambooth_core.storage.stores import Store, open_store
from dreambooth_core.tracking import mlflow as tracking
from dreambooth_core.tracking.mlflow import report_address


class VersionDetails(Record):
    """A version with the records that it rests on, as things stand."""

    config: Config
    version: ModelVersion
    instance: ImageSet
    weights: Weights
    scores: Scores
    verdict: Verdict | None
    """The gate's last word; None when it was not asked."""
    champion: str | None
    """The version in service."""
    report: str | None
    """Where its run's page is: an address for a browser, or its URI in the store; None without one."""

    @property
    def name(self) -> str:
        """NAME/version."""
        return f"{self.version.name}/{self.version.version}"


@dataclass(frozen=True)
class OpenedVersion:
    """A version with the store and the log that know it."""

    found: RegisteredModel
    store: Store
    book: AliasLog


class ListedVersion(Record):
    """A version as a table shows it."""

    name: str
    version: str
    aliases: tuple[str, ...]
    method: str
    verdict: str
    """promote, keep or inconclusive; empty when the gate was not asked."""
    sentence: str
    metrics: dict[str, float]
    when: str
    """UTC, ISO 8601."""
    run_id: str


@contextmanager
def opened(config: Config | None, work: Path, wanted: str) -> Iterator[OpenedVersion]:
    """The version behind NAME, NAME@alias or NAME/version, while its store can be reached.

    An alias is what the log says, and so is MLflow's afterwards. Raises as `find_version` does.
    """
    found = find_version(config, work, wanted)
    with local_services(found.config):
        store = open_store(found.config.storage)
        book = book_of(found.config, store)
        if book is None:  # deleted since it was found
            raise ConfigError(f"{wanted} is no longer registered")
        if not book.is_followed():
            book.follow(tracking.open_client(found.config))
            found = find_version(config, work, wanted)
        yield OpenedVersion(found, store, book)


def listed(config: Config | None, work: Path) -> list[ListedVersion]:
    """All versions of all models, as MLflow knows them; the newest of each model first."""
    client = tracking.open_client(tracking_place(config, work))
    rows = []
    for model in _all(client.search_registered_models):
        aliases = {alias: str(version) for alias, version in model.aliases.items()}
        quote = '"' if "'" in model.name else "'"  # others may call their models anything
        of = partial(client.search_model_versions, f"name = {quote}{model.name}{quote}")
        rows += [_listed(one, aliases) for one in _all(of)]
    return sorted(rows, key=lambda row: (row.name, -int(row.version)))


def _all(search: Callable[..., Any]) -> Iterator[Any]:
    """Every page of a search in MLflow."""
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _listed(version: Any, aliases: dict[str, str]) -> ListedVersion:
    tags, mark = version.tags, "dreambooth.metric."
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    return ListedVersion(
        name=version.name,
        version=str(version.version),
        aliases=tuple(alias for alias, one in aliases.items() if one == str(version.version)),
        method=tags.get("dreambooth.method", ""),
        verdict=tags.get("dreambooth.verdict", ""),
        sentence=tags.get("dreambooth.verdict_sentence", ""),
        metrics={
            name.removeprefix(mark): float(value)
            for name, value in tags.items()
            if name.startswith(mark)
        },
        when=created.isoformat(timespec="seconds"),
        run_id=version.run_id or "",
    )


def version_details(found: RegisteredModel, store: Store) -> VersionDetails:
    """Raises `ConfigError` for a version that says nothing of itself, `StorageError` for lost records."""
    from dreambooth_core.registry.promotion import verdict_of

    book = book_of(found.config, store)
    if book is None:
        raise ConfigError(f"there is no registered model {found.name}: run its config first")
    standing = followed(found.config, book)
    origin = read_provenance(book, found.version)
    ancestry = run_inputs(store, origin)
    return VersionDetails(
        config=found.config,
        version=ModelVersion(
            name=found.name,
            version=found.version,
            aliases=standing.of(found.version),
            run_id=origin.run_id,
        ),
        instance=ancestry.instance,
        weights=ancestry.weights,
        scores=ancestry.scores,
        verdict=verdict_of(book, found.version),
        champion=standing.champion,
        report=_report(store, found, origin.run_id),
    )


def _report(store: Store, found: RegisteredModel, run: str) -> str | None:
    """The page of the last run that ended in this version."""
    for key in reversed(list(store.keys(f"reports/{found.name}-"))):
        if not key.endswith("/summary.json"):
            continue
        summary = Summary.model_validate_json(store.get(key))
        model = summary.model
        if model and (model.name, model.version) == (found.name, found.version):
            stored = summary.artifacts.get("stored_report")
            return stored and (report_address(found.config, run) or stored)
    return None
