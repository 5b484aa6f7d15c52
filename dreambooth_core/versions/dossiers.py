"""A registered version as someone needs it who decides about it, or judges it again."""

from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError
from dreambooth_core.records import ImageSet, ModelVersion, Record, Scores, Verdict, Weights
from dreambooth_core.registry import Found, book_of, followed
from dreambooth_core.storage import Store
from dreambooth_core.summary import Summary
from dreambooth_core.tracking import report_address
from dreambooth_core.versions.origins import ancestry_of, read_origin


class Dossier(Record):
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


def dossier_of(found: Found, store: Store) -> Dossier:
    """Raises `ConfigError` for a version that says nothing of itself, `StorageError` for lost records."""
    from dreambooth_core.versions.promotion import verdict_of

    book = book_of(found.config, store)
    if book is None:
        raise ConfigError(f"there is no registered model {found.name}: run its config first")
    standing = followed(found.config, book)
    origin = read_origin(book, found.version)
    ancestry = ancestry_of(store, origin)
    return Dossier(
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


def _report(store: Store, found: Found, run: str) -> str | None:
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
