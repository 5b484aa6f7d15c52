"""Checks of a photo set: duplicates, near duplicates, crops, blur, and the number of photos."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from dreambooth_core import config
from dreambooth_core.data.findings import FOLDER, Finding, Level, about

if TYPE_CHECKING:
    from PIL.Image import Image as Pixels

    from dreambooth_core.vision.shifts import Views
    from dreambooth_core.vision.similarity import Fingerprint

BLUR_SIDE = 512
"""Side in pixels at which sharpness is compared, or the smallest photo's shorter side."""
SEARCHED = 30
"""Largest set in which crops are searched at all scales, about 50 ms a pair; in larger sets at scale
1 only, about 5 ms a pair."""


class CheckedPhoto(NamedTuple):
    """A decoded photo's data for comparison with others."""

    path: Path
    name: str
    bytes_digest: str
    pixel_digest: str
    fingerprint: "Fingerprint"
    views: "Views"
    centre: "Pixels"
    """Grey central square, at most BLUR_SIDE wide."""
    mask: Path | None
    """The mask file."""


def compared(
    photos: Sequence[CheckedPhoto], rules: config.Dataset
) -> tuple[list[CheckedPhoto], list[Finding]]:
    """The photos without exact copies, and findings about the set."""
    findings: list[Finding] = []
    distinct = _distinct(photos, findings)
    findings += _near_duplicates(distinct, rules)
    findings += _blurred(distinct, rules)
    findings += _counted(len(distinct), rules)
    return distinct, findings


def _distinct(photos: Iterable[CheckedPhoto], findings: list[Finding]) -> list[CheckedPhoto]:
    """The photos without exact copies, keeping the first by name."""
    first: dict[str, CheckedPhoto] = {}
    for photo in photos:
        same = first.setdefault(photo.pixel_digest, photo)
        if same is photo:
            continue
        what = "file" if same.bytes_digest == photo.bytes_digest else "pixels"
        measure, remedy = f"the same {what} as {same.name}", "remove one; it is counted once"
        findings.append(
            about("soft", photo.path, "exact duplicate", measure, "each photo once", remedy)
        )
    return list(first.values())


def _near_duplicates(photos: Sequence[CheckedPhoto], rules: config.Dataset) -> list[Finding]:
    """Photos too similar to an earlier one, as a whole or in part."""
    from dreambooth_core.vision.similarity import alike

    findings = []
    for index, photo in enumerate(photos[1:], 1):
        matches = [(alike(other.fingerprint, photo.fingerprint), other) for other in photos[:index]]
        match, other = max(matches, key=lambda pair: pair[0].score)
        if match.score <= rules.near_duplicate:
            findings += _partial_copy(photo, photos[:index], len(photos))
            continue
        measure = f"similarity {match.score:.3f} with {other.name}"
        findings.append(
            _copy(photo, _kind(match.mirrored, match.moved), measure, rules.near_duplicate)
        )
    return findings


def _partial_copy(photo: CheckedPhoto, others: Sequence[CheckedPhoto], count: int) -> list[Finding]:
    """A finding if the photo shows part of another; `count` is the size of the whole set."""
    from dreambooth_core.vision.shifts import COPY, SCALES, shifted

    scales = len(SCALES) if count <= SEARCHED else 1
    matches = [(shifted(other.views, photo.views, scales), other) for other in others]
    match, other = max(matches, key=lambda pair: pair[0].score)
    if match.score <= COPY:
        return []
    measure = f"similarity {match.score:.3f} with {other.name} in an overlap of {match.overlap:.0%}"
    return [_copy(photo, _kind(match.mirrored, True), measure, COPY)]


def _copy(photo: CheckedPhoto, check: str, measure: str, limit: float) -> Finding:
    remedy = "keep one, add another view instead"
    return about("soft", photo.path, check, measure, f"at most {limit:g}", remedy)


def _kind(mirrored: bool, moved: bool) -> str:
    if mirrored:
        return "mirrored duplicate"
    return "shifted duplicate" if moved else "near duplicate"


def _blurred(photos: Sequence[CheckedPhoto], rules: config.Dataset) -> list[Finding]:
    """Photos far below the set's median sharpness; none in a set of one or two."""
    from dreambooth_core.vision.similarity import sharpness

    if len(photos) < 3:
        return []
    side = min(photo.centre.width for photo in photos)
    measures = [sharpness(photo.centre, side) for photo in photos]
    limit = rules.blur_ratio * median(measures)
    return [
        about(
            "soft",
            photo.path,
            "blur",
            f"sharpness {measure:.1f}",
            f"at least {limit:.1f} ({rules.blur_ratio:g} of the set's median)",
            "use a sharper photo",
        )
        for photo, measure in zip(photos, measures, strict=True)
        if measure < limit
    ]


def _counted(count: int, rules: config.Dataset) -> list[Finding]:
    if count < rules.min_images:
        return [too_many_or_few("hard", count, f"at least {rules.min_images}", "add more photos")]
    if count < rules.few_images:
        return [
            too_many_or_few("soft", count, f"better {rules.few_images} or more", "add another view")
        ]
    if count > rules.many_images:
        remedy = "keep the most different ones: few photos bind a subject best"
        return [too_many_or_few("soft", count, f"better {rules.many_images} or fewer", remedy)]
    return []


def too_many_or_few(level: Level, count: int, limit: str, remedy: str) -> Finding:
    check = "too many" if "most" in limit or "fewer" in limit else "too few"
    return Finding(
        level=level,
        file=FOLDER,
        check=check,
        measure=f"{count} distinct usable photos",
        limit=limit,
        remedy=remedy,
    )
