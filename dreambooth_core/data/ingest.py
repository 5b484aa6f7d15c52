"""Stage `validate`: photos checked and stored, cached by files and rules."""

from dreambooth_core.config import Config, Subject
from dreambooth_core.data import dataset, references
from dreambooth_core.data.dataset import Validation
from dreambooth_core.digests import digest_of_file
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage.records import ImageSet, Record
from dreambooth_core.storage.stage_cache import cached_stage
from dreambooth_core.storage.stores import Store

CHECKS = 2
"""Part of the stage's key; raise it when equal files get other findings with equal images."""


class IngestedPhotos(Record):
    """Stored instance images, and the findings of their checks."""

    images: ImageSet
    validation: Validation


def ingest(config: Config, store: Store) -> tuple[IngestedPhotos, bool]:
    """The instance images of all subjects, and whether the result was cached.

    Raises `DatasetRefused` with the hard findings, before anything is stored. Raises `ConfigError`
    for `loss.masks` without a mask and for a missing dataset version.
    """
    config = references.pinned(config, store)

    def make(_: str) -> IngestedPhotos:
        images, validation = dataset.collect(store, references.with_folders(config, store))
        return IngestedPhotos(images=images, validation=validation)

    ingested, reused = cached_stage(store, "validate", _inputs(config), IngestedPhotos, make)
    if config.loss.masks and not any(image.mask for image in ingested.images.images):
        folders = ", ".join(str(subject.images) for subject in config.subjects)
        raise ConfigError(
            f"loss.masks is on and no photo in {folders} has a mask: add <photo>.mask.png, white on "
            "the subject, or set dataset.auto_masks: true, or loss.masks: false"
        )
    return ingested, reused


def _inputs(config: Config) -> dict[str, object]:
    from dreambooth_core.vision.crops import detector_digest

    detects = config.dataset.auto_masks
    return {
        "checks": CHECKS,
        "detector": detector_digest(config.evaluation.detector) if detects else None,
        "subjects": [_files(subject) for subject in config.subjects],
        "rules": config.dataset,
        "resolution": config.model.resolution,
    }


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
