"""Photos checked and stored (stage `validate`), and captioned (stage `caption`), both cached."""

from dreambooth_core.config import Config, Subject
from dreambooth_core.data import auto_captions, dataset, references
from dreambooth_core.data.auto_masks import UNANSWERED
from dreambooth_core.data.dataset import Validation
from dreambooth_core.digests import digest_of_file
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage.records import ImageSet, Record
from dreambooth_core.storage.stage_cache import cached_stage
from dreambooth_core.storage.stores import Store
from dreambooth_core.vision.language.model import deciding

CHECKS = 2
"""Part of the stage's key; raise it when equal files get other findings with equal images."""


class IngestedPhotos(Record):
    """Stored instance images, and the findings of their checks."""

    images: ImageSet
    validation: Validation


def ingest(config: Config, store: Store) -> tuple[IngestedPhotos, bool]:
    """The instance images that a run trains on, and whether all results were cached.

    Raises the errors of `checked_photos` and `captioned_photos`.
    """
    photos, reused = checked_photos(config, store)
    if not config.dataset.auto_captions:
        return photos, reused
    captioned, also_reused = captioned_photos(config, store, photos)
    return captioned, reused and also_reused


def captioned_photos(
    config: Config, store: Store, photos: IngestedPhotos
) -> tuple[IngestedPhotos, bool]:
    """The photos with captions by the model of `vision` where they have none (`dataset.auto_captions`).

    Raises the errors of `auto_captions.with_captions`.
    """
    made, reused = auto_captions.with_captions(config, store, photos.images)
    checks = photos.validation
    validation = checks.model_copy(
        update={
            "findings": (*checks.findings, *made.findings),
            "unanswered": checks.unanswered + made.unanswered,
        }
    )
    return IngestedPhotos(images=made.images, validation=validation), reused


def checked_photos(config: Config, store: Store) -> tuple[IngestedPhotos, bool]:
    """The photos of all subjects with their own captions, and whether the result was cached.

    A result with missing answers of `dataset.second_opinion` is computed again, from cached answers.
    Raises `DatasetRefused` with the hard findings, before anything is stored. Raises `ConfigError`
    for `loss.masks` without a mask and for a missing dataset version. A result that lacks masks because
    a vision-language model did not answer is computed again.
    """
    config = references.pinned(config, store)

    def make(_: str) -> IngestedPhotos:
        images, validation = dataset.collect(store, references.with_folders(config, store))
        return IngestedPhotos(images=images, validation=validation)

    ingested, reused = cached_stage(
        store, "validate", _inputs(config), IngestedPhotos, make, _is_complete
    )
    if config.loss.masks and not any(image.mask for image in ingested.images.images):
        folders = ", ".join(str(subject.images) for subject in config.subjects)
        raise ConfigError(
            f"loss.masks is on and no photo in {folders} has a mask: add <photo>.mask.png, white on "
            "the subject, or set dataset.auto_masks: true, or loss.masks: false"
        )
    return ingested, reused


def _inputs(config: Config) -> dict[str, object]:
    from dreambooth_core.vision.crops import detector_digest
    from dreambooth_core.vision.identity_encoders import PREFIX, builtin_digest

    rules = config.dataset
    detects = rules.auto_masks
    detector = config.evaluation.detector
    identity = config.evaluation.identity
    classifier = {"classifier": builtin_digest(identity)} if identity.startswith(PREFIX) else {}
    return {
        "checks": CHECKS,
        "detector": detector_digest(detector, config.vision) if detects else None,
        "subjects": [_files(subject) for subject in config.subjects],
        "vision": deciding(config.vision) if rules.second_opinion else None,
        "rules": rules.model_copy(update={"auto_captions": False}),  # applied to the result
        "resolution": config.model.resolution,
        **classifier,
    }


def _is_complete(photos: IngestedPhotos) -> bool:
    found = photos.validation
    return not found.unanswered and all(one.check != UNANSWERED for one in found.findings)


def _files(subject: Subject) -> dict[str, object]:
    captions = [subject.captions, subject.identifier, subject.class_noun]
    if subject.dataset:
        return {"dataset": subject.dataset, "captions": captions}
    folder = subject.folder
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return {
        "folder": folder,
        "files": [[path.name, digest_of_file(path)] for path in files],
        "captions": captions,
    }
