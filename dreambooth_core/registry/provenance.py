"""What a model version comes from: the record of it in the store, from the photos to the scores."""

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
    """What a version comes from."""

    name: str
    version: str = ""
    run_id: str = ""
    """The MLflow run."""
    model_id: str = ""
    """The logged model in MLflow."""
    config: Config
    """As it was trained and measured, without `PRIVATE`."""
    instance: str
    """Key in the store of the instance images' manifest."""
    instance_digest: str
    classes: str | None
    """The same of the class images, if there are any."""
    classes_digest: str | None
    base_digest: str
    weights: str
    """Key of the `Weights`."""
    weights_digest: str
    scores: str
    """Key of the `Scores`."""
    scores_digest: str
    code: str
    """Version and commit of the code that registered it, `-dirty` where it differed from the commit."""
    when: str
    """UTC, ISO 8601."""
    by: str


@dataclass(frozen=True)
class RunInputs:
    """The records that a version comes from."""

    instance: ImageSet
    classes: ImageSet | None
    weights: Weights
    scores: Scores

    @property
    def sets(self) -> dict[str, ImageSet]:
        """Name -> image set, those that there are."""
        named = {"instance_images": self.instance, "class_images": self.classes}
        return {name: made for name, made in named.items() if made is not None}


def provenance_of(config: Config, store: Store, found: RunInputs) -> Provenance:
    """Of a version that is not registered yet; the weights' record is written to its place."""
    instance, classes, weights, scores = found.instance, found.classes, found.weights, found.scores
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


def put_provenance(book: AliasLog, origin: Provenance) -> None:
    """Keep it under the version's number, once."""
    put_record(book.store, f"{book.place}/versions/{origin.version}.json", origin)


def read_provenance(book: AliasLog, version: str) -> Provenance:
    """Raises `ConfigError` for a version that has none, as older code registered them."""
    found = get_record(book.store, f"{book.place}/versions/{version}.json", Provenance)
    if found is None:
        raise ConfigError(
            f"{book.store.uri} does not say what {book.name}/{version} comes from: run its config "
            "once more to register it again"
        )
    return found


def run_inputs(store: Store, origin: Provenance) -> RunInputs:
    """The records themselves; raises `StorageError` when the store lacks one."""
    return RunInputs(
        instance=_read(store, origin.instance, ImageSet),
        classes=_read(store, origin.classes, ImageSet) if origin.classes else None,
        weights=_read(store, origin.weights, Weights),
        scores=_read(store, origin.scores, Scores),
    )


def _read(store: Store, key: str, kind: type[R]) -> R:
    found = get_record(store, key, kind)
    if found is None:
        raise StorageError(f"{key} is no longer in {store.uri}: run the config again")
    return found


def _key(store: Store, uri: str) -> str:
    return uri.removeprefix(f"{store.uri}/")
