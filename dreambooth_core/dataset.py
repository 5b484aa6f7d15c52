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
from statistics import median
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from dreambooth_core import captions, config, masks
from dreambooth_core.errors import ConfigError, DatasetRefused
from dreambooth_core.findings import (
    FOLDER,
    Finding,
    Level,
    Validation,
    findings_table,
    merged,
    printable,
    refusal,
)
from dreambooth_core.records import Image, ImageSet

if TYPE_CHECKING:
    from PIL.Image import Image as Pixels

    from dreambooth_core import images
    from dreambooth_core.likeness import Likeness, Print
    from dreambooth_core.storage import Store

__all__ = ["Finding", "Validation", "collect", "findings_table", "validate"]

T = TypeVar("T")
R = TypeVar("R")

# fmt: off
SIDECARS = frozenset({
    "txt", "caption", "json", "jsonl", "csv", "md", "yaml", "yml", "xml", "xmp", "aae", "ini", "db",
    "lnk", "url", "license", "licence", "licenses", "readme",
})
RAW = frozenset({"dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "pef", "srw"})
# fmt: on
ASPECT = 2.0
"""Longer side over shorter side from which the central square leaves most of the photo out."""
BLUR_SIDE = 512
"""Side at which sharpness is compared; less where a photo of the set is smaller."""
WORKERS = 2
"""Photos decoded at once: Pillow works outside the interpreter lock, and each may take 100 MP."""


class _Photo(NamedTuple):
    path: Path
    name: str
    bytes_digest: str
    pixel_digest: str
    print: "Print"
    centre: "Pixels"
    """Grey central square, at most BLUR_SIDE wide."""
    mask: Path | None
    """The file beside it."""


class _Found(NamedTuple):
    validation: Validation
    photos: list[_Photo]
    captions: dict[Path, str]


def validate(
    folder: Path, rules: config.Dataset, resolution: int, subject: config.Subject | None = None
) -> Validation:
    """Decode and compare every photo of `folder`; nothing in it is changed.

    `resolution` is the training side in pixels, the least side of a photo unless `rules.min_side`
    says otherwise. Captions are looked at when their subject is known. Raises `ConfigError` when
    there is no such folder.
    """
    return _survey(folder, rules, resolution, subject).validation


def collect(store: "Store", config: config.Config) -> tuple[ImageSet, Validation]:
    """Validate all subjects' photos and store normalised copies: upright sRGB PNGs, no metadata.

    Ordered by subject and content, so that renaming the files changes nothing. Raises `ConfigError`
    for a missing folder, `DatasetRefused` with the hard findings.
    """
    from dreambooth_core import blobs

    rules, resolution = config.dataset, config.model.resolution
    surveys = [_survey(subject.images, rules, resolution, subject) for subject in config.subjects]
    validation = merged([found.validation for found in surveys])
    if validation.refused:
        raise DatasetRefused(refusal(validation))
    members = [
        member
        for number, found in enumerate(surveys)
        for member in _in_threads(
            partial(_member, store, rules, number, found.captions),
            sorted(found.photos, key=lambda photo: photo.pixel_digest),
        )
    ]
    return blobs.image_set(store, "datasets", members), validation


def _member(
    store: "Store", rules: config.Dataset, subject: int, captions: dict[Path, str], photo: _Photo
) -> Image:
    """The photo's normalised copy and its mask, stored."""
    from dreambooth_core import blobs, images

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


def _survey(
    folder: Path, rules: config.Dataset, resolution: int, subject: config.Subject | None
) -> _Found:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ConfigError(
            f"the photo folder {folder} {what}: subject.images names a folder with "
            f"{rules.min_images} or more photos"
        )
    findings: list[Finding] = []
    paths, drawn = _candidates(folder, findings)
    if len(paths) > rules.max_images:
        findings.append(_count("hard", len(paths), f"at most {rules.max_images}", "remove some"))
        return _Found(_validation(folder, findings, []), [], {})
    side = rules.min_side or resolution
    read = _in_threads(lambda path: _read(path, drawn.get(path.stem), rules, side), paths)
    photos = [photo for photo, _ in read if photo is not None]
    findings.extend(finding for _, found in read for finding in found)
    photos = _distinct(photos, findings)
    findings.extend(_lookalikes(photos, rules))
    findings.extend(_blurred(photos, rules))
    findings.extend(_counted(len(photos), rules))
    given: dict[Path, str] = {}
    if subject is not None:
        given, remarks = captions.beside(folder, paths, subject)
        findings.extend(remarks)
    return _Found(_validation(folder, findings, photos), photos, given)


def _validation(folder: Path, findings: Sequence[Finding], photos: Sequence[_Photo]) -> Validation:
    digest = hashlib.sha256("".join(sorted(photo.pixel_digest for photo in photos)).encode())
    return Validation(
        folder=printable(str(folder)),
        findings=tuple(findings),
        accepted=tuple(photo.name for photo in photos),
        digest=digest.hexdigest(),
    )


def _candidates(folder: Path, findings: list[Finding]) -> tuple[list[Path], dict[str, Path]]:
    """The files that are photos or claim to be, by name, and masks by the stems of their photos.

    Says what is left aside.
    """
    root, photos = Path(os.path.realpath(folder)), []
    drawn: dict[str, Path] = {}
    try:
        entries = sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))
    except OSError as error:
        raise ConfigError(
            f"the photo folder {folder} cannot be listed: {error.strerror}"
        ) from error
    for path in entries:
        if path.name.startswith("."):
            continue
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
            findings.append(
                _finding(
                    "hard",
                    path,
                    "link",
                    "a link that leaves the folder",
                    "links inside the folder",
                    "copy the file itself into the folder",
                )
            )
        elif masks.is_mask(path):
            drawn[masks.stem(path)] = path
        elif _is_photo(path):
            photos.append(path)
        elif not _is_sidecar(path):
            findings.append(_left_aside(path))
    stems = {path.stem for path in photos}
    findings.extend(_lonely(path) for stem, path in drawn.items() if stem not in stems)
    return photos, drawn


def _is_photo(path: Path) -> bool:
    """By extension or, whatever its name, by its first bytes."""
    from dreambooth_core.images import EXTENSIONS, looks_like_image

    extension = path.suffix[1:].lower()
    if path.is_dir() or extension in RAW:
        return False
    if any(extension in extensions for extensions in EXTENSIONS.values()):
        return True
    try:
        with path.open("rb") if path.is_file() else open(os.devnull, "rb") as file:
            return looks_like_image(file.read(16))
    except OSError:
        return False


def _is_sidecar(path: Path) -> bool:
    words = {path.suffix[1:].lower(), path.stem.lower()}
    return not path.is_dir() and bool(words & SIDECARS)


def _lonely(mask: Path) -> Finding:
    what, limit = "a mask without its photo", "a photo of the same stem beside it"
    return _finding("soft", mask, "ignored", what, limit, "rename it, or remove it")


def _left_aside(path: Path) -> Finding:
    what, remedy = "not an image", "remove it from the folder"
    if path.is_dir():
        what, remedy = "a folder inside the folder", "move its photos up if they belong to the set"
    elif path.suffix[1:].lower() in RAW:
        what, remedy = "a camera's raw file", "export it as JPEG or PNG"
    return _finding("soft", path, "ignored", what, "photos only", remedy)


def _read(
    path: Path, mask: Path | None, rules: config.Dataset, min_side: int
) -> tuple[_Photo | None, list[Finding]]:
    """Decode and measure one file and its mask, and say what is wrong with them alone."""
    from dreambooth_core import images, likeness

    at = path
    try:
        data = _bytes(path, rules.max_bytes)
        decoded = images.decode(data, rules.max_pixels, min_side)
        at = mask or path
        sidecar = None if mask is None else _bytes(mask, rules.max_bytes)
        masks.of_photo(decoded, sidecar, rules.max_pixels)
    except images.ImageRefused as no:
        return None, [_finding("hard", at, no.check, no.measure, no.limit, no.remedy)]
    image = decoded.image
    photo = _Photo(
        path=path,
        name=printable(path.name),
        bytes_digest=hashlib.sha256(data).hexdigest(),
        pixel_digest=images.pixel_digest(image),
        print=likeness.fingerprint(image),
        centre=images.square(image.convert("L"), min(BLUR_SIDE, *image.size)),
        mask=mask,
    )
    return photo, _remarks(path, decoded, rules)


def _bytes(path: Path, max_bytes: int) -> bytes:
    """The whole file, its size looked at first; raises `ImageRefused`."""
    from dreambooth_core.images import ImageRefused

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
    from dreambooth_core.images import EXTENSIONS

    found, fitting = [], EXTENSIONS[photo.format]
    width, height = photo.image.size
    if path.suffix[1:].lower() not in fitting:
        what = f"{photo.format} content under the name {path.suffix or 'of no extension'}"
        remedy = f"rename it to .{fitting[0]}"
        found.append(_finding("soft", path, "extension", what, f".{' .'.join(fitting)}", remedy))
    if photo.transparent:
        what, remedy = "transparent pixels", "flatten it on a background of your choice"
        found.append(
            _finding("soft", path, "transparency", what, "none: they become white", remedy)
        )
    aspect = rules.bucket_ratio if rules.buckets else ASPECT
    if max(width, height) > aspect * min(width, height):
        limit, remedy = f"at most {aspect:g} : 1", "crop it around the subject: the centre is used"
        found.append(_finding("soft", path, "aspect", f"{width} x {height} pixels", limit, remedy))
    return found


def _distinct(photos: Iterable[_Photo], findings: list[Finding]) -> list[_Photo]:
    """The photos without exact copies, the first by name staying."""
    first: dict[str, _Photo] = {}
    for photo in photos:
        same = first.setdefault(photo.pixel_digest, photo)
        if same is photo:
            continue
        what = "file" if same.bytes_digest == photo.bytes_digest else "pixels"
        measure, remedy = f"the same {what} as {same.name}", "remove one; it is counted once"
        findings.append(
            _finding("soft", photo.path, "exact duplicate", measure, "each photo once", remedy)
        )
    return list(first.values())


def _lookalikes(photos: Sequence[_Photo], rules: config.Dataset) -> list[Finding]:
    """Each photo's closest match among those before it, where that is too close."""
    from dreambooth_core.likeness import alike

    findings = []
    for index, photo in enumerate(photos[1:], 1):
        matches = [(alike(other.print, photo.print), other) for other in photos[:index]]
        match, other = max(matches, key=lambda pair: pair[0].score)
        if match.score <= rules.near_duplicate:
            continue
        check = _kind(match)
        measure = f"{match.score:.3f} alike with {other.name}"
        limit, remedy = f"at most {rules.near_duplicate:g}", "keep one, add another view instead"
        findings.append(_finding("soft", photo.path, check, measure, limit, remedy))
    return findings


def _kind(match: "Likeness") -> str:
    if match.mirrored:
        return "mirrored duplicate"
    return "shifted duplicate" if match.moved else "near duplicate"


def _blurred(photos: Sequence[_Photo], rules: config.Dataset) -> list[Finding]:
    """Photos far less sharp than the set's median; two have no median to speak of."""
    from dreambooth_core.likeness import sharpness

    if len(photos) < 3:
        return []
    side = min(photo.centre.width for photo in photos)
    measures = [sharpness(photo.centre, side) for photo in photos]
    limit = rules.blur_ratio * median(measures)
    return [
        _finding(
            "soft",
            photo.path,
            "blur",
            f"sharpness {measure:.1f}",
            f"at least {limit:.1f}, {rules.blur_ratio:g} of the set's median",
            "use a sharper photo",
        )
        for photo, measure in zip(photos, measures, strict=True)
        if measure < limit
    ]


def _counted(count: int, rules: config.Dataset) -> list[Finding]:
    if count < rules.min_images:
        return [_count("hard", count, f"at least {rules.min_images}", "add more photos")]
    if count < rules.few_images:
        return [_count("soft", count, f"better {rules.few_images} or more", "add another view")]
    if count > rules.many_images:
        remedy = "keep the most different ones: a subject is bound best from a handful"
        return [_count("soft", count, f"better {rules.many_images} or fewer", remedy)]
    return []


def _count(level: Level, count: int, limit: str, remedy: str) -> Finding:
    check = "too many" if "most" in limit or "fewer" in limit else "too few"
    return Finding(
        level=level,
        file=FOLDER,
        check=check,
        measure=f"{count} distinct usable photos",
        limit=limit,
        remedy=remedy,
    )


def _finding(
    level: Level, path: Path, check: str, measure: str, limit: str, remedy: str
) -> Finding:
    return Finding(
        level=level,
        file=printable(path.name),
        check=check,
        measure=measure,
        limit=limit,
        remedy=remedy,
    )


def _in_threads(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(work, items))
