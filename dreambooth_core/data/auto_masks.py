"""Masks for photos that came without one, by the finder that also crops the scores."""

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
from dreambooth_core.vision.crops import covered
from dreambooth_core.vision.detectors import Detector, load_detector

if TYPE_CHECKING:
    from dreambooth_core.storage.stores import Store


def marked(
    store: "Store", config: Config, photos: Sequence[Image]
) -> tuple[list[Image], list[Finding]]:
    """Stored photos, those without a mask with the one found, and where nothing was found.

    A mask that a photo has stays. Raises `ModelError` when the finder is missing or has no label
    for a class noun.
    """
    finder = load_detector(config.evaluation.detector)
    nouns = [subject.class_noun for subject in config.subjects]
    if finder is None:
        return list(photos), []
    done = [
        photo
        if photo.mask
        else photo.model_copy(update={"mask": _found(store, finder, nouns[photo.subject], photo)})
        for photo in photos
    ]
    shown = Counter(nouns[photo.subject] for photo in done)
    bare = Counter(nouns[photo.subject] for photo in done if photo.mask is None)
    return done, [_remark(noun, count, shown[noun]) for noun, count in bare.items()]


def _found(store: "Store", finder: Detector, noun: str, photo: Image) -> Blob | None:
    """The stored mask, of the photo's size; None where nothing was found.

    White on the subject and a fringe around it, since an ear that is cut off is not learned.
    """
    image = Pillow.open(io.BytesIO(get_blob(store, photo.blob)))
    (spot,) = finder.find([image], noun)
    if spot is None:
        return None
    mask = Pillow.fromarray(covered(spot, (image.height, image.width)))
    return put_blob(store, encode_png(mask.convert("L")))


def _remark(noun: str, count: int, total: int) -> Finding:
    return Finding(
        level="soft",
        file=FOLDER,
        check="mask",
        measure=f"no {noun} found in {count} of {total} photos",
        limit="a mask for each, since dataset.auto_masks is on",
        remedy="put <photo>.mask.png beside them; they are trained on as wholes",
    )
