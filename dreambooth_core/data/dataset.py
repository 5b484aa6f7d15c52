"""The photo set: what is wrong with it, for people and machines, and its normalised copy.

folder -> read (names, sizes, links) -> decode -> compare -> Validation     nothing is changed
                                              \\-> collect -> blobs + ImageSet
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from dreambooth_core import config
from dreambooth_core.data import captions, masks
from dreambooth_core.data.checks import BLUR_SIDE, CheckedPhoto, compared, too_many_or_few
from dreambooth_core.data.files import candidates
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

__all__ = ["Finding", "Validation", "collect", "findings_table", "validate"]

T = TypeVar("T")
R = TypeVar("R")
Captions = Callable[[Path, Sequence[Path]], tuple[dict[Path, str], list[Finding]]]
"""Folder, photos -> the captions that are to be kept, and what is wrong with any."""

ASPECT = 2.0
"""Longer side over shorter side from which the central square leaves most of the photo out."""
WORKERS = 2
"""Photos decoded at once: Pillow works outside the interpreter lock, and each may take 100 MP."""


class _Found(NamedTuple):
    validation: Validation
    photos: list[CheckedPhoto]
    captions: dict[Path, str]


def validate(
    folder: Path, rules: config.Dataset, resolution: int, subject: config.Subject | None = None
) -> Validation:
    """Decode and compare every photo of `folder`; nothing in it is changed.

    `resolution` is the training side in pixels, the least side of a photo unless `rules.min_side`
    says otherwise. Captions are looked at when their subject is known. Raises `ConfigError` when
    there is no such folder.
    """
    return _survey(folder, rules, resolution, _captions_of(subject)).validation


def collect(store: "Store", config: config.Config) -> tuple[ImageSet, Validation]:
    """Validate all subjects' photos and store normalised copies: upright sRGB PNGs, no metadata.

    Ordered by subject and content, so that renaming the files changes nothing. Raises `ConfigError`
    for a missing folder, `DatasetRefused` with the hard findings, `ModelError` for a missing finder.
    """
    from dreambooth_core.data import auto_masks
    from dreambooth_core.storage import blobs

    rules, resolution = config.dataset, config.model.resolution
    surveys = [
        _survey(subject.folder, rules, resolution, _captions_of(subject))
        for subject in config.subjects
    ]
    validation = merged([found.validation for found in surveys])
    if validation.refused:
        raise DatasetRefused(refusal(validation), validation.findings)
    members = [
        member
        for number, found in enumerate(surveys)
        for member in _members(store, rules, number, found)
    ]
    if rules.auto_masks:
        members, remarks = auto_masks.marked(store, config, members)
        validation = validation.model_copy(update={"findings": (*validation.findings, *remarks)})
    return blobs.image_set(store, "datasets", members), validation


def store_photos(
    store: "Store", folder: Path, rules: config.Dataset, resolution: int
) -> tuple[list[Image], Validation]:
    """The same of one folder without a subject: captions stay as they were written.

    Raises as `collect` does.
    """
    found = _survey(folder, rules, resolution, _as_written)
    if found.validation.refused:
        raise DatasetRefused(refusal(found.validation), found.validation.findings)
    return _members(store, rules, 0, found), found.validation


def _members(store: "Store", rules: config.Dataset, number: int, found: _Found) -> list[Image]:
    return _in_threads(
        partial(_member, store, rules, number, found.captions),
        sorted(found.photos, key=lambda photo: photo.pixel_digest),
    )


def _member(
    store: "Store",
    rules: config.Dataset,
    subject: int,
    captions: dict[Path, str],
    photo: CheckedPhoto,
) -> Image:
    """The photo's normalised copy and its mask, stored."""
    from dreambooth_core.data import images
    from dreambooth_core.storage import blobs

    decoded = images.decode(photo.path.read_bytes(), rules.max_pixels)
    image = decoded.image
    if images.pixel_digest(image) != photo.pixel_digest:
        raise DatasetRefused(f"{photo.name} changed while it was read: run again")
    blob = blobs.put_blob(store, images.encode_png(image))
    sidecar = None if photo.mask is None else photo.mask.read_bytes()
    mask = masks.of_photo(decoded, sidecar, rules.max_pixels)
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
    return partial(captions.beside, subject=subject)


def _as_written(folder: Path, photos: Sequence[Path]) -> tuple[dict[Path, str], list[Finding]]:
    texts, findings = captions.written(folder, photos)
    return {photo: text for photo, (_, text) in texts.items()}, findings


def _survey(
    folder: Path, rules: config.Dataset, resolution: int, captions: Captions | None
) -> _Found:
    if not os.path.isdir(folder):  # where Path.is_dir raises for a name that is too long
        what = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise ConfigError(
            f"the photo folder {folder} {what}: subject.images names a folder with "
            f"{rules.min_images} or more photos"
        )
    findings: list[Finding] = []
    paths, drawn = candidates(folder, findings)
    if len(paths) > rules.max_images:
        findings.append(
            too_many_or_few("hard", len(paths), f"at most {rules.max_images}", "remove some")
        )
        return _Found(_validation(folder, findings, []), [], {})
    side = rules.min_side or resolution
    read = _in_threads(lambda path: _read(path, drawn.get(path.stem), rules, side), paths)
    photos = [photo for photo, _ in read if photo is not None]
    findings.extend(finding for _, found in read for finding in found)
    photos, remarks = compared(photos, rules)
    findings.extend(remarks)
    given: dict[Path, str] = {}
    if captions is not None:
        given, remarks = captions(folder, paths)
        findings.extend(remarks)
    return _Found(_validation(folder, findings, photos), photos, given)


def _validation(
    folder: Path, findings: Sequence[Finding], photos: Sequence[CheckedPhoto]
) -> Validation:
    digest = hashlib.sha256("".join(sorted(photo.pixel_digest for photo in photos)).encode())
    return Validation(
        folder=printable(str(folder)),
        findings=tuple(findings),
        accepted=tuple(photo.name for photo in photos),
        digest=digest.hexdigest(),
    )


def _read(
    path: Path, mask: Path | None, rules: config.Dataset, min_side: int
) -> tuple[CheckedPhoto | None, list[Finding]]:
    """Decode and measure one file and its mask, and say what is wrong with them alone."""
    from dreambooth_core.data import images
    from dreambooth_core.vision import shifts, similarity

    at = path
    try:
        data = _bytes(path, rules.max_bytes)
        decoded = images.decode(data, rules.max_pixels, min_side)
        at = mask or path
        sidecar = None if mask is None else _bytes(mask, rules.max_bytes)
        masks.of_photo(decoded, sidecar, rules.max_pixels)
    except images.ImageRefused as no:
        return None, [about("hard", at, no.check, no.measure, no.limit, no.remedy)]
    image = decoded.image
    photo = CheckedPhoto(
        path=path,
        name=printable(path.name),
        bytes_digest=hashlib.sha256(data).hexdigest(),
        pixel_digest=images.pixel_digest(image),
        print=similarity.fingerprint(image),
        views=shifts.views(image),
        centre=images.square(image.convert("L"), min(BLUR_SIDE, *image.size)),
        mask=mask,
    )
    return photo, _remarks(path, decoded, rules)


def _bytes(path: Path, max_bytes: int) -> bytes:
    """The whole file, its size looked at first; raises `ImageRefused`."""
    from dreambooth_core.data.images import ImageRefused

    try:
        if not path.is_file():
            raise OSError(0, "not a regular file")
        size = path.stat().st_size
        if size <= max_bytes:
            return path.read_bytes()
    except OSError as error:
        raise ImageRefused(
            "unreadable",
            f"cannot be read ({error.strerror})",
            "a readable file",
            "look at its permissions, or remove it",
        ) from error
    raise ImageRefused(
        "too large",
        f"{size:,} bytes",
        f"at most {max_bytes:,} bytes",
        "scale it down, or raise dataset.max_bytes",
    )


def _remarks(path: Path, photo: "images.Photo", rules: config.Dataset) -> list[Finding]:
    """Soft findings about one decoded photo."""
    from dreambooth_core.data.images import EXTENSIONS

    found, fitting = [], EXTENSIONS[photo.format]
    width, height = photo.image.size
    if path.suffix[1:].lower() not in fitting:
        what = f"{photo.format} content under the name {path.suffix or 'of no extension'}"
        remedy = f"rename it to .{fitting[0]}"
        found.append(about("soft", path, "extension", what, f".{' .'.join(fitting)}", remedy))
    if photo.transparent:
        what, remedy = "transparent pixels", "flatten it on a background of your choice"
        found.append(about("soft", path, "transparency", what, "none: they become white", remedy))
    aspect = rules.bucket_ratio if rules.buckets else ASPECT
    if max(width, height) > aspect * min(width, height):
        limit, remedy = f"at most {aspect:g} : 1", "crop it around the subject: the centre is used"
        found.append(about("soft", path, "aspect", f"{width} x {height} pixels", limit, remedy))
    return found


def _in_threads(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(work, items))
