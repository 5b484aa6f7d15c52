"""The first stage: photos checked and taken in, once for the same files under the same rules."""

from dreambooth_core.config import Config, Subject
from dreambooth_core.data import dataset, references
from dreambooth_core.data.dataset import Validation
from dreambooth_core.digests import digest_of_file
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage.records import ImageSet, Record
from dreambooth_core.storage.stage_cache import cached_stage
from dreambooth_core.storage.stores import Store

CHECKS = 2
"""Raised by hand when the same files would get other findings than before, and the same images."""


class IngestedPhotos(Record):
    """Instance images, and what was found while checking them."""

    images: ImageSet
    validation: Validation


def ingest(config: Config, store: Store) -> tuple[IngestedPhotos, bool]:
    """The instance images of all subjects, and whether these very files had been taken in before.

    Raises `DatasetRefused` naming the hard findings; nothing is kept then. Raises `ConfigError`
    for `loss.masks` without a mask and for a dataset version that is not there.
    """
    config = references.pinned(config, store)

    def make(_: str) -> IngestedPhotos:
        images, validation = dataset.collect(store, references.brought(config, store))
        return IngestedPhotos(images=images, validation=validation)

    taken, reused = cached_stage(store, "validate", _inputs(config), IngestedPhotos, make)
    if config.loss.masks and not any(image.mask for image in taken.images.images):
        folders = ", ".join(str(subject.images) for subject in config.subjects)
        raise ConfigError(
            f"loss.masks is on and no photo in {folders} has a mask: put <photo>.mask.png beside "
            "one, white on the subject, set dataset.auto_masks: true, or loss.masks: false"
        )
    return taken, reused


def _inputs(config: Config) -> dict[str, object]:
    from dreambooth_core.vision.crops import detector_digest

    finds = config.dataset.auto_masks
    return {
        "checks": CHECKS,
        "finder": detector_digest(config.evaluation.detector) if finds else None,
        "subjects": [_files(subject) for subject in config.subjects],
        "rules": config.dataset,
        "resolution": config.model.resolution,
    }


def _files(subject: Subject) -> dict[str, object]:
    words = [subject.captions, subject.identifier, subject.class_noun]
    if subject.dataset:
        return {"dataset": subject.dataset, "words": words}
    folder = subject.folder
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return {
        "folder": folder,
        "files": [[path.name, digest_of_file(path)] for path in files],
        "words": words,
    }
