"""Validation of photo folders, and storage of normalised copies.

folder -> read (names, sizes, links) -> decode -> compare -> Validation     (read-only)
                                              \\-> collect -> blobs + ImageSet
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from dreambooth_core import config
from dreambooth_core.data import captions, masks, second_opinion
from dreambooth_core.data.checks import BLUR_SIDE, CheckedPhoto, compared, too_many_or_few
from dreambooth_core.data.files import candidates, photo_bytes
from dreambooth_core.data.findings import (
    Finding,
    Validation,
    about,
    findings_table,
    merged,
    printable,
    refusal,
)
from dreambooth_core.errors import ConfigError, DatasetRefused
from dreambooth_core.storage.records import Image, ImageSet

if TYPE_CHECKING:
    from dreambooth_core.data import images
    from dreambooth_core.storage.stores import Store
    from dreambooth_core.vision.language.model import VisionLanguageModel

__all__ = ["Finding", "Validation", "collect", "findings_table", "validate"]

T = TypeVar("T")
R = TypeVar("R")
Captions = Callable[[Path, Sequence[Path]], tuple[dict[Path, str], list[Finding]]]
"""Folder, photos -> captions to store, and findings."""
Opinion = Callable[[Sequence[Path]], tuple[list[Finding], int]]
"""Photos -> findings of a vision-language model, and the number of its missing answers."""

ASPECT = 2.0
"""Aspect ratio above which the central square omits most of the photo."""
WORKERS = 2
"""Photos decoded in parallel: Pillow releases the GIL; each photo may take 100 MP of memory."""


class _Survey(NamedTuple):
    validation: Validation
    photos: list[CheckedPhoto]
    captions: dict[Path, str]


def validate(
    folder: Path,
    rules: config.Dataset,
    resolution: int,
    subject: config.Subject | None = None,
    model: "VisionLanguageModel | None" = None,
) -> Validation:
    """Decode and compare every photo of `folder`, read-only.

    `resolution` is the training side in pixels, and the least side of a photo without
    `rules.min_side`. Captions are checked if `subject` is given; with `model` also the photos' content
    (see `second_opinion`). Raises `ConfigError` for a missing folder, `StageFailed` if `model` answers
    no question.
    """
    opinion = _opinion_of(subject, rules, model)
    return _survey(folder, rules, resolution, _captions_of(subject), opinion).validation


def collect(store: "Store", config: config.Config) -> tuple[ImageSet, Validation]:
    """Validate all subjects' photos and store normalised copies: upright sRGB PNGs, no metadata.

    Sorted by subject and content, so that file names have no effect. Raises `ConfigError` for a
    missing folder, `DatasetRefused` with the hard findings, `ModelError` for a missing detector, and
    `StageFailed` if the model of `dataset.second_opinion` answers no question.
    """
    from dreambooth_core.data import auto_masks
    from dreambooth_core.storage import blobs

    rules, resolution = config.dataset, config.model.resolution
    with second_opinion.opened_model(config, store) as model:
        surveys = [
            _survey(
                subject.folder,
                rules,
                resolution,
                _captions_of(subject),
                _opinion_of(subject, rules, model),
            )
            for subject in config.subjects
        ]
    validation = merged([found.validation for found in surveys])
    if validation.refused:
        raise DatasetRefused(refusal(validation), validation.findings)
    copies = [
        image
        for number, found in enumerate(surveys)
        for image in _stored(store, rules, number, found)
    ]
    if rules.auto_masks:
        copies, remarks = auto_masks.with_masks(store, config, copies)
        validation = validation.model_copy(update={"findings": (*validation.findings, *remarks)})
    if remarks := _noun_findings(store, config, copies):
        validation = validation.model_copy(update={"findings": (*validation.findings, *remarks)})
    return blobs.image_set(store, "datasets", copies), validation


def _noun_findings(store: "Store", config: config.Config, copies: Sequence[Image]) -> list[Finding]:
    """Findings about class nouns, if the config's identity encoder is a packaged classifier."""
    from dreambooth_core.vision.class_nouns import load_classifier

    classifier = load_classifier(config.evaluation.identity)
    if classifier is None:
        return []
    import PIL.Image as pil

    from dreambooth_core.data.noun_checks import noun_findings
    from dreambooth_core.storage.blobs import get_blob

    found = []
    for number, subject in enumerate(config.subjects):
        photos = [
            pil.open(io.BytesIO(get_blob(store, copy.blob)))
            for copy in copies
            if copy.subject == number
        ]
        found += noun_findings(classifier, photos, subject.class_noun)
    return found


def store_photos(
    store: "Store", folder: Path, rules: config.Dataset, resolution: int
) -> tuple[list[Image], Validation]:
    """Like `collect` for one folder without a subject: captions keep their placeholders."""
    found = _survey(folder, rules, resolution, _unfilled_captions)
    if found.validation.refused:
        raise DatasetRefused(refusal(found.validation), found.validation.findings)
    return _stored(store, rules, 0, found), found.validation


def _stored(store: "Store", rules: config.Dataset, number: int, found: _Survey) -> list[Image]:
    return _in_threads(
        partial(_stored_photo, store, rules, number, found.captions),
        sorted(found.photos, key=lambda photo: photo.pixel_digest),
    )


def _stored_photo(
    store: "Store",
    rules: config.Dataset,
    subject: int,
    captions: dict[Path, str],
    photo: CheckedPhoto,
) -> Image:
    """Store the photo's normalised copy and its mask."""
    from dreambooth_core.data import images
    from dreambooth_core.storage import blobs

    decoded = images.decode(photo.path.read_bytes(), rules.max_pixels)
    image = decoded.image
    if images.pixel_digest(image) != photo.pixel_digest:
        raise DatasetRefused(f"{photo.name} changed while it was being read: run again")
    blob = blobs.put_blob(store, images.encode_png(image))
    sidecar = None if photo.mask is None else photo.mask.read_bytes()
    mask = masks.mask_of(decoded, sidecar, rules.max_pixels)
    return Image(
        name=f"{blob.sha256[:16]}{f'-{subject}' if subject else ''}.png",
        blob=blob,
        prompt=captions.get(photo.path, ""),
        subject=subject,
        mask=None if mask is None else blobs.put_blob(store, images.encode_png(mask)),
        size=(image.height, image.width),
    )


def _captions_of(subject: config.Subject | None) -> Captions | None:
    if subject is None or not subject.captions:
        return None
    return partial(captions.filled, subject=subject)


def _opinion_of(
    subject: config.Subject | None, rules: config.Dataset, model: "VisionLanguageModel | None"
) -> Opinion | None:
    if subject is None or model is None:
        return None
    return partial(second_opinion.second_opinion, model, subject.class_noun, rules)


def _unfilled_captions(
    folder: Path, photos: Sequence[Path]
) -> tuple[dict[Path, str], list[Finding]]:
    texts, findings = captions.unfilled(folder, photos)
    return {photo: text for photo, (_, text) in texts.items()}, findings


def _survey(
    folder: Path,
    rules: config.Dataset,
    resolution: int,
    captions: Captions | None,
    opinion: Opinion | None = None,
) -> _Survey:
    if not os.path.isdir(folder):  # Path.is_dir raises for too long names
        what = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise ConfigError(
            f"the photo folder {folder} {what}: set subject.images to a folder with "
            f"{rules.min_images} or more photos"
        )
    findings: list[Finding] = []
    paths, mask_files = candidates(folder, findings)
    if len(paths) > rules.max_images:
        findings.append(
            too_many_or_few("hard", len(paths), f"at most {rules.max_images}", "remove some")
        )
        return _Survey(_validation(folder, findings, []), [], {})
    side = rules.min_side or resolution
    read = _in_threads(lambda path: _read(path, mask_files.get(path.stem), rules, side), paths)
    photos = [photo for photo, _ in read if photo is not None]
    findings.extend(finding for _, found in read for finding in found)
    photos, remarks = compared(photos, rules)
    findings.extend(remarks)
    given: dict[Path, str] = {}
    if captions is not None:
        given, remarks = captions(folder, paths)
        findings.extend(remarks)
    unanswered = 0
    if opinion is not None and photos:
        remarks, unanswered = opinion([photo.path for photo in photos])
        findings.extend(remarks)
    return _Survey(_validation(folder, findings, photos, unanswered), photos, given)


def _validation(
    folder: Path,
    findings: Sequence[Finding],
    photos: Sequence[CheckedPhoto],
    unanswered: int = 0,
) -> Validation:
    digest = hashlib.sha256("".join(sorted(photo.pixel_digest for photo in photos)).encode())
    return Validation(
        folder=printable(str(folder)),
        findings=tuple(findings),
        accepted=tuple(photo.name for photo in photos),
        digest=digest.hexdigest(),
        unanswered=unanswered,
    )


def _read(
    path: Path, mask: Path | None, rules: config.Dataset, min_side: int
) -> tuple[CheckedPhoto | None, list[Finding]]:
    """Decode and measure one photo and its mask, with the findings about these two files."""
    from dreambooth_core.data import images
    from dreambooth_core.vision import shifts, similarity

    file = path
    try:
        data = photo_bytes(path, rules.max_bytes)
        decoded = images.decode(data, rules.max_pixels, min_side)
        file = mask or path
        sidecar = None if mask is None else photo_bytes(mask, rules.max_bytes)
        masks.mask_of(decoded, sidecar, rules.max_pixels)
    except images.ImageRefused as error:
        finding = about("hard", file, error.check, error.measure, error.limit, error.remedy)
        return None, [finding]
    image = decoded.image
    photo = CheckedPhoto(
        path=path,
        name=printable(path.name),
        bytes_digest=hashlib.sha256(data).hexdigest(),
        pixel_digest=images.pixel_digest(image),
        fingerprint=similarity.fingerprint(image),
        views=shifts.views(image),
        centre=images.square(image.convert("L"), min(BLUR_SIDE, *image.size)),
        mask=mask,
    )
    return photo, _remarks(path, decoded, rules)


def _remarks(path: Path, photo: "images.Photo", rules: config.Dataset) -> list[Finding]:
    """Soft findings about one decoded photo."""
    from dreambooth_core.data.images import EXTENSIONS

    found, fitting = [], EXTENSIONS[photo.format]
    width, height = photo.image.size
    if path.suffix[1:].lower() not in fitting:
        what = f"{photo.format} content with {path.suffix or 'no'} extension"
        remedy = f"rename it to .{fitting[0]}"
        found.append(about("soft", path, "extension", what, f".{' .'.join(fitting)}", remedy))
    if photo.transparent:
        what, remedy = "transparent pixels", "flatten it on a background; white is used otherwise"
        found.append(about("soft", path, "transparency", what, "opaque pixels", remedy))
    aspect = rules.bucket_ratio if rules.buckets else ASPECT
    if max(width, height) > aspect * min(width, height):
        limit, remedy = f"at most {aspect:g} : 1", "crop it around the subject; the centre is used"
        found.append(about("soft", path, "aspect", f"{width} x {height} pixels", limit, remedy))
    return found


def _in_threads(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(work, items))
