"""From the photos to the alias: everything that a model version comes from, by digests."""

from dreambooth_core.config import Method
from dreambooth_core.registry.aliases import AliasChange, AliasLog
from dreambooth_core.registry.promotion import verdict_of
from dreambooth_core.registry.provenance import read_provenance, run_inputs
from dreambooth_core.storage.checkpoint_manifests import LineageCheckpoint, checkpoints_of
from dreambooth_core.storage.records import (
    ImageSet,
    Permission,
    Record,
    Verdict,
    config_digest,
    permissions_of,
)
from dreambooth_core.storage.stores import Store


class LineageImage(Record):
    """One image of a set."""

    name: str
    sha256: str


class LineageImages(Record):
    """An image set."""

    uri: str
    digest: str
    images: tuple[LineageImage, ...]


class LineageBase(Record):
    """The base model."""

    name: str
    revision: str | None
    digest: str
    licence: str


class LineageTraining(Record):
    """How the weights came about."""

    key: str
    code: str
    """Version and commit of the code that trained; empty where an older one did."""
    method: Method
    steps: int
    chosen_step: int
    resumed_from: int
    checkpoints: tuple[LineageCheckpoint, ...]
    weights: str
    """Digest."""
    files: dict[str, str]
    """File of the weights -> SHA-256."""


class LineageScores(Record):
    """How good it is."""

    digest: str
    plan: str
    metrics: dict[str, float]


class LineageDecision(Record):
    """What the gate said."""

    digest: str
    outcome: str
    against: str
    sentence: str
    noise: dict[str, float]
    """Metric -> by how much the champion differed from itself, which no guard's margin was below."""


class Lineage(Record):
    """All of it, in the order in which it came to be."""

    model: str
    """NAME/version."""
    aliases: tuple[str, ...]
    instance: LineageImages
    subjects: tuple[Permission, ...]
    """All that were learned, the main one first."""
    classes: LineageImages | None
    base: LineageBase
    config: str
    """Digest of the config, without what is this machine's own."""
    code: str
    """Version and commit of the code that registered it."""
    training: LineageTraining
    scores: LineageScores
    registered: str
    """UTC, ISO 8601."""
    by: str
    run_id: str
    model_id: str
    verdict: LineageDecision | None
    changes: tuple[AliasChange, ...]
    """Of aliases, and refusals: those about this version, or that took an alias from it."""


def lineage_of(store: Store, book: AliasLog, version: str) -> Lineage:
    """Raises `ConfigError` for a version that says nothing of it, `StorageError` for lost records."""
    origin = read_provenance(book, version)
    found, config = run_inputs(store, origin), origin.config
    weights, scores = found.weights, found.scores
    return Lineage(
        model=f"{book.name}/{version}",
        aliases=book.standing.of(version),
        instance=_images(found.instance),
        subjects=permissions_of(config),
        classes=_images(found.classes) if found.classes else None,
        base=LineageBase(
            name=config.model.base,
            revision=config.model.revision,
            digest=origin.base_digest,
            licence=config.model.licence,
        ),
        config=config_digest(config),
        code=origin.code,
        training=LineageTraining(
            key=weights.key,
            code=weights.code,
            method=weights.method,
            steps=weights.steps,
            chosen_step=weights.chosen_step or weights.steps,
            resumed_from=weights.resumed_from,
            checkpoints=checkpoints_of(store, weights.key),
            weights=weights.digest,
            files={name: blob.sha256 for name, blob in weights.files.items()},
        ),
        scores=LineageScores(digest=scores.digest, plan=scores.plan, metrics=scores.metrics),
        registered=origin.when,
        by=origin.by,
        run_id=origin.run_id,
        model_id=origin.model_id,
        verdict=_decision(verdict_of(book, version)),
        changes=_changes(book, version),
    )


def _images(found: ImageSet) -> LineageImages:
    photos = tuple(
        LineageImage(name=image.name, sha256=image.blob.sha256) for image in found.images
    )
    return LineageImages(uri=found.uri, digest=found.digest, images=photos)


def _decision(verdict: Verdict | None) -> LineageDecision | None:
    if verdict is None:
        return None
    said = {name: getattr(verdict, name) for name in LineageDecision.model_fields}
    return LineageDecision(**said)


def _changes(book: AliasLog, version: str) -> tuple[AliasChange, ...]:
    """Those about the version, and those after which it has other aliases than before."""
    changes, before = [], tuple[str, ...]()
    for change in book.history():
        now = change.standing.of(version)
        if now != before or change.version == version:
            changes.append(change)
        before = now
    return tuple(changes)
