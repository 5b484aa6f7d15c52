"""Masks for photos without one, by the detector of the evaluation."""

import io
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import PIL.Image as Pillow

from dreambooth_core.config import Config
from dreambooth_core.data.findings import FOLDER, Finding
from dreambooth_core.data.images import encode_png
from dreambooth_core.storage.blobs import get_blob, put_blob
from dreambooth_core.storage.records import Blob, Image
from dreambooth_core.vision.crops import subject_area
from dreambooth_core.vision.detectors import Detector, load_detector

if TYPE_CHECKING:
    from dreambooth_core.storage.stores import Store


def with_masks(
    store: "Store", config: Config, photos: Sequence[Image]
) -> tuple[list[Image], list[Finding]]:
    """Stored photos with detected masks where they have none, and findings where detection failed.

    Raises `ModelError` when the detector is missing or has no label for a class noun.
    """
    detector = load_detector(config.evaluation.detector)
    nouns = [subject.class_noun for subject in config.subjects]
    if detector is None:
        return list(photos), []
    done = [
        photo
        if photo.mask
        else photo.model_copy(update={"mask": _mask(store, detector, nouns[photo.subject], photo)})
        for photo in photos
    ]
    total = Counter(nouns[photo.subject] for photo in done)
    missing = Counter(nouns[photo.subject] for photo in done if photo.mask is None)
    return done, [_not_found(noun, count, total[noun]) for noun, count in missing.items()]


def _mask(store: "Store", detector: Detector, noun: str, photo: Image) -> Blob | None:
    """The stored mask, of the photo's size; None where the subject was not found.

    White on the subject and a fringe, so that its edges are not excluded from the loss.
    """
    image = Pillow.open(io.BytesIO(get_blob(store, photo.blob)))
    (region,) = detector.find([image], noun)
    if region is None:
        return None
    mask = Pillow.fromarray(subject_area(region, (image.height, image.width)))
    return put_blob(store, encode_png(mask.convert("L")))


def _not_found(noun: str, count: int, total: int) -> Finding:
    return Finding(
        level="soft",
        file=FOLDER,
        check="mask",
        measure=f"no {noun} found in {count} of {total} photos",
        limit="a mask for each, since dataset.auto_masks is on",
        remedy="add <photo>.mask.png files; without them the whole photo is trained on",
    )
