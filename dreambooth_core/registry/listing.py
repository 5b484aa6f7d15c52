"""Registered versions: one with all its records, or a list of all."""

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
    alias_log_of,
    find_version,
    synced_state,
    tracking_config,
)
from dreambooth_core.reports.run_questions import FinishedRun
from dreambooth_core.reports.summary import Summary
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.records import ImageSet, ModelVersion, Record, Scores, Verdict, Weights
from dreambooth_core.storage.stores import Store, open_store
from dreambooth_core.tracking import mlflow as tracking
from dreambooth_core.tracking.mlflow import report_address


class VersionDetails(Record):
    """A version with its records and current aliases."""

    config: Config
    version: ModelVersion
    instance: ImageSet
    weights: Weights
    scores: Scores
    verdict: Verdict | None
    """The gate's last verdict; None without one."""
    champion: str | None
    """The champion's version; None without one."""
    report: str | None
    """HTML report of its run: an http address, or a URI in the store; None without one."""

    @property
    def name(self) -> str:
        """NAME/version."""
        return f"{self.version.name}/{self.version.version}"

    @property
    def run(self) -> FinishedRun:
        """The run that questions are asked about."""
        return FinishedRun(self.name, self.config, self.instance, self.scores, self.verdict)


@dataclass(frozen=True)
class OpenedVersion:
    """A version with its store and alias log."""

    found: RegisteredModel
    store: Store
    log: AliasLog


class ListedVersion(Record):
    """A row of the table of versions."""

    name: str
    version: str
    aliases: tuple[str, ...]
    method: str
    verdict: str
    """promote, keep or inconclusive; empty without a verdict."""
    sentence: str
    metrics: dict[str, float]
    when: str
    """UTC, ISO 8601."""
    run_id: str


@contextmanager
def opened_version(config: Config | None, work: Path, wanted: str) -> Iterator[OpenedVersion]:
    """The version called NAME, NAME@alias or NAME/version, while its local services run.

    Aliases are resolved by the log, and MLflow is synchronized with it. Raises as `find_version`.
    """
    found = find_version(config, work, wanted)
    with local_services(found.config):
        store = open_store(found.config.storage)
        log = alias_log_of(found.config, store)
        if log is None:  # deleted since it was found
            raise ConfigError(f"{wanted} is no longer registered")
        if not log.is_synced():
            log.sync(tracking.open_client(found.config))
            found = find_version(config, work, wanted)
        yield OpenedVersion(found, store, log)


def list_versions(config: Config | None, work: Path) -> list[ListedVersion]:
    """All versions of all models in MLflow, by name, the newest version first."""
    client = tracking.open_client(tracking_config(config, work))
    rows = []
    for model in _all_pages(client.search_registered_models):
        aliases = {alias: str(version) for alias, version in model.aliases.items()}
        quote = '"' if "'" in model.name else "'"  # models of other programs may have any name
        of = partial(client.search_model_versions, f"name = {quote}{model.name}{quote}")
        rows += [_listed(one, aliases) for one in _all_pages(of)]
    return sorted(rows, key=lambda row: (row.name, -int(row.version)))


def _all_pages(search: Callable[..., Any]) -> Iterator[Any]:
    """Items of all pages of a search in MLflow."""
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _listed(version: Any, aliases: dict[str, str]) -> ListedVersion:
    tags, prefix = version.tags, "dreambooth.metric."
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    return ListedVersion(
        name=version.name,
        version=str(version.version),
        aliases=tuple(alias for alias, one in aliases.items() if one == str(version.version)),
        method=tags.get("dreambooth.method", ""),
        verdict=tags.get("dreambooth.verdict", ""),
        sentence=tags.get("dreambooth.verdict_sentence", ""),
        metrics={
            name.removeprefix(prefix): float(value)
            for name, value in tags.items()
            if name.startswith(prefix)
        },
        when=created.isoformat(timespec="seconds"),
        run_id=version.run_id or "",
    )


def version_details(found: RegisteredModel, store: Store) -> VersionDetails:
    """Raises `ConfigError` for a version without provenance, `StorageError` for missing records."""
    from dreambooth_core.registry.promotion import verdict_of

    log = alias_log_of(found.config, store)
    if log is None:
        raise ConfigError(f"no registered model {found.name}: run its config first")
    state = synced_state(found.config, log)
    provenance = read_provenance(log, found.version)
    inputs = run_inputs(store, provenance)
    return VersionDetails(
        config=found.config,
        version=ModelVersion(
            name=found.name,
            version=found.version,
            aliases=state.aliases_of(found.version),
            run_id=provenance.run_id,
        ),
        instance=inputs.instance,
        weights=inputs.weights,
        scores=inputs.scores,
        verdict=verdict_of(log, found.version),
        champion=state.champion,
        report=_report(store, found, provenance.run_id),
    )


def _report(store: Store, found: RegisteredModel, run: str) -> str | None:
    """HTML report of the last run that registered this version."""
    for key in reversed(list(store.keys(f"reports/{found.name}-"))):
        if not key.endswith("/summary.json"):
            continue
        summary = Summary.model_validate_json(store.get(key))
        model = summary.model
        if model and (model.name, model.version) == (found.name, found.version):
            stored = summary.artifacts.get("stored_report")
            return stored and (report_address(found.config, run) or stored)
    return None
