"""Lineage of a model version, from the photos to the aliases, by digests."""

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
    """Name and digest of an image of a set."""

    name: str
    sha256: str


class LineageImages(Record):
    """Digests of an image set."""

    uri: str
    digest: str
    images: tuple[LineageImage, ...]


class LineageBase(Record):
    """Name, revision, digest and licence of the base model."""

    name: str
    revision: str | None
    digest: str
    licence: str


class LineageTraining(Record):
    """Training of the weights."""

    key: str
    code: str
    """Version and commit of the training code; empty for trainings by older code."""
    method: Method
    steps: int
    chosen_step: int
    resumed_from: int
    checkpoints: tuple[LineageCheckpoint, ...]
    weights: str
    """Digest of the weights."""
    files: dict[str, str]
    """File of the weights -> SHA-256."""


class LineageScores(Record):
    """Scores of the evaluation."""

    digest: str
    plan: str
    metrics: dict[str, float]


class LineageDecision(Record):
    """Verdict of the gate."""

    digest: str
    outcome: str
    against: str
    sentence: str
    noise: dict[str, float]
    """Metric -> the champion's difference from itself with other seeds: lower bound of guards' margins."""


class Lineage(Record):
    """Everything that a version was made from, and what was decided about it."""

    model: str
    """NAME/version."""
    aliases: tuple[str, ...]
    instance: LineageImages
    subjects: tuple[Permission, ...]
    """Provenance and consent of all subjects, the main one first."""
    classes: LineageImages | None
    base: LineageBase
    config: str
    """Digest of the config without `PRIVATE`."""
    code: str
    """Version and commit of the registering code."""
    training: LineageTraining
    scores: LineageScores
    registered: str
    """UTC, ISO 8601."""
    by: str
    run_id: str
    model_id: str
    verdict: LineageDecision | None
    changes: tuple[AliasChange, ...]
    """Changes and rejections of this version, and changes that took an alias from it."""


def lineage_of(store: Store, log: AliasLog, version: str) -> Lineage:
    """Raises `ConfigError` for a version without provenance, `StorageError` for missing records."""
    provenance = read_provenance(log, version)
    inputs, config = run_inputs(store, provenance), provenance.config
    weights, scores = inputs.weights, inputs.scores
    return Lineage(
        model=f"{log.name}/{version}",
        aliases=log.state.aliases_of(version),
        instance=_images(inputs.instance),
        subjects=permissions_of(config),
        classes=_images(inputs.classes) if inputs.classes else None,
        base=LineageBase(
            name=config.model.base,
            revision=config.model.revision,
            digest=provenance.base_digest,
            licence=config.model.licence,
        ),
        config=config_digest(config),
        code=provenance.code,
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
        registered=provenance.when,
        by=provenance.by,
        run_id=provenance.run_id,
        model_id=provenance.model_id,
        verdict=_decision(verdict_of(log, version)),
        changes=_changes(log, version),
    )


def _images(images: ImageSet) -> LineageImages:
    photos = tuple(
        LineageImage(name=image.name, sha256=image.blob.sha256) for image in images.images
    )
    return LineageImages(uri=images.uri, digest=images.digest, images=photos)


def _decision(verdict: Verdict | None) -> LineageDecision | None:
    if verdict is None:
        return None
    return LineageDecision(
        **{name: getattr(verdict, name) for name in LineageDecision.model_fields}
    )


def _changes(log: AliasLog, version: str) -> tuple[AliasChange, ...]:
    """Changes of the version, and changes after which its aliases differ."""
    changes, before = [], tuple[str, ...]()
    for change in log.history():
        aliases = change.state.aliases_of(version)
        if aliases != before or change.version == version:
            changes.append(change)
        before = aliases
    return tuple(changes)
