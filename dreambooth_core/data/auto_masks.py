"""Masks for photos without one, by the detector of the evaluation."""

import io
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import PIL.Image as Pillow

from dreambooth_core.config import Config
from dreambooth_core.data.findings import FOLDER, Finding
from dreambooth_core.data.images import encode_png
from dreambooth_core.storage.answer_cache import StoredAnswers
from dreambooth_core.storage.blobs import get_blob, put_blob
from dreambooth_core.storage.records import Blob, Image
from dreambooth_core.vision.crops import subject_area
from dreambooth_core.vision.detectors import Detector, load_detector

if TYPE_CHECKING:
    from dreambooth_core.storage.stores import Store

UNANSWERED = "mask unanswered"
"""Check of the finding about photos without a mask because requests failed."""


def with_masks(
    store: "Store", config: Config, photos: Sequence[Image]
) -> tuple[list[Image], list[Finding]]:
    """Stored photos with detected masks where they have none, and findings where detection failed.

    Raises `ModelError` when the detector is missing or has no label for a class noun.
    """
    answers = StoredAnswers(store)
    detector = load_detector(config.evaluation.detector, config.vision, answers)
    nouns = [subject.class_noun for subject in config.subjects]
    if detector is None:
        return list(photos), []
    done, failed = [], Counter[str]()
    for photo in photos:
        noun, before = nouns[photo.subject], detector.unanswered
        mask = photo.mask or _mask(store, detector, noun, photo)
        done.append(photo.model_copy(update={"mask": mask}))
        failed[noun] += detector.unanswered - before
    total = Counter(nouns[photo.subject] for photo in done)
    missing = Counter(nouns[photo.subject] for photo in done if photo.mask is None) - failed
    return done, [
        *(_not_found(noun, count, total[noun]) for noun, count in missing.items()),
        *(_unanswered(noun, count, total[noun]) for noun, count in failed.items() if count),
    ]


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


def _unanswered(noun: str, count: int, total: int) -> Finding:
    return Finding(
        level="soft",
        file=FOLDER,
        check=UNANSWERED,
        measure=f"the vision-language model did not answer about {count} of {total} photos of a {noun}",
        limit="a mask for each, since dataset.auto_masks is on",
        remedy="run it again, or add <photo>.mask.png files",
    )


def _not_found(noun: str, count: int, total: int) -> Finding:
    return Finding(
        level="soft",
        file=FOLDER,
        check="mask",
        measure=f"no {noun} found in {count} of {total} photos",
        limit="a mask for each, since dataset.auto_masks is on",
        remedy="add <photo>.mask.png files; without them the whole photo is trained on",
    )
