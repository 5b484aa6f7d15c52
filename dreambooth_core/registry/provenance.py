"""Provenance of a model version: its record in the store, with keys and digests of all inputs."""

from dataclasses import dataclass
from typing import TypeVar

from dreambooth_core.config import Config
from dreambooth_core.diffusion.base_model import base_digest
from dreambooth_core.errors import ConfigError, StorageError
from dreambooth_core.registry.aliases import AliasLog
from dreambooth_core.storage.blobs import get_record, put_record
from dreambooth_core.storage.code_version import code_version
from dreambooth_core.storage.records import (
    PRIVATE,
    ImageSet,
    Record,
    Scores,
    Weights,
    current_user,
    utc_now,
)
from dreambooth_core.storage.stores import Store

R = TypeVar("R", bound=Record)


class Provenance(Record):
    """Inputs of a version, by key and digest, and when, by whom and with which code it was made."""

    name: str
    version: str = ""
    run_id: str = ""
    """Id of the MLflow run."""
    model_id: str = ""
    """Id of the logged model in MLflow."""
    config: Config
    """Config of training and evaluation, without `PRIVATE`."""
    instance: str
    """Key of the instance images' manifest in the store."""
    instance_digest: str
    classes: str | None
    """Key of the class images' manifest; None without class images."""
    classes_digest: str | None
    base_digest: str
    weights: str
    """Key of the `Weights`."""
    weights_digest: str
    scores: str
    """Key of the `Scores`."""
    scores_digest: str
    code: str
    """Version and commit of the registering code, with `-dirty` for uncommitted changes."""
    when: str
    """UTC, ISO 8601."""
    by: str


@dataclass(frozen=True)
class RunInputs:
    """Records that a version was made from."""

    instance: ImageSet
    classes: ImageSet | None
    weights: Weights
    scores: Scores

    @property
    def sets(self) -> dict[str, ImageSet]:
        """Name -> image set, without missing ones."""
        named = {"instance_images": self.instance, "class_images": self.classes}
        return {name: made for name, made in named.items() if made is not None}


def provenance_of(config: Config, store: Store, inputs: RunInputs) -> Provenance:
    """Provenance of a version to be registered; writes the weights' record to the store."""
    instance, classes, weights, scores = (
        inputs.instance,
        inputs.classes,
        inputs.weights,
        inputs.scores,
    )
    key = f"models/{config.name}/{weights.digest}.json"
    put_record(store, key, weights)
    return Provenance(
        name=config.name,
        config=Config.model_validate(config.model_dump(mode="json", exclude=PRIVATE)),
        instance=_key(store, instance.uri),
        instance_digest=instance.digest,
        classes=_key(store, classes.uri) if classes else None,
        classes_digest=classes.digest if classes else None,
        base_digest=base_digest(config.model),
        weights=key,
        weights_digest=weights.digest,
        scores=_key(store, scores.uri),
        scores_digest=scores.digest,
        code=code_version(),
        when=utc_now(),
        by=current_user(),
    )


def put_provenance(log: AliasLog, provenance: Provenance) -> None:
    """Store it once, under the version's number."""
    put_record(log.store, f"{log.prefix}/versions/{provenance.version}.json", provenance)


def read_provenance(log: AliasLog, version: str) -> Provenance:
    """Raises `ConfigError` for a version without a stored provenance, registered by older code."""
    found = get_record(log.store, f"{log.prefix}/versions/{version}.json", Provenance)
    if found is None:
        raise ConfigError(
            f"{log.store.uri} has no provenance of {log.name}/{version}: run its config again to "
            "register it again"
        )
    return found


def run_inputs(store: Store, provenance: Provenance) -> RunInputs:
    """The version's records; raises `StorageError` when one is missing in the store."""
    return RunInputs(
        instance=_read(store, provenance.instance, ImageSet),
        classes=_read(store, provenance.classes, ImageSet) if provenance.classes else None,
        weights=_read(store, provenance.weights, Weights),
        scores=_read(store, provenance.scores, Scores),
    )


def _read(store: Store, key: str, kind: type[R]) -> R:
    found = get_record(store, key, kind)
    if found is None:
        raise StorageError(f"{key} is no longer in {store.uri}: run the config again")
    return found


def _key(store: Store, uri: str) -> str:
    return uri.removeprefix(f"{store.uri}/")
