"""Masks of a photo folder shown over the photos: a contact sheet, and how much each one covers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dreambooth_core import config
from dreambooth_core.data import contact_sheets, images, masks
from dreambooth_core.data.files import candidates
from dreambooth_core.data.findings import Finding, Validation, about, printable
from dreambooth_core.vision import crops
from dreambooth_core.vision.detectors import Detector, Region

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 256
"""Pixels of one cell of the sheet."""
PAIRS = 3
"""Photos per row, each beside its mask."""
DIMMED, TINT = 0.25, (90.0, 0.0, 90.0)
"""Brightness of what is outside a mask, and the colour that is added to it."""


@dataclass(frozen=True)
class MaskedPhoto:
    """A photo's region, and the photo and its overlay reduced to a cell."""

    path: Path
    share: float
    """Of the photo that the mask covers; 0 without a mask."""
    given: bool
    """Whether the mask is a file or the photo's transparency, not the detector's."""
    photo: Image.Image
    overlay: Image.Image

    def as_json(self) -> dict[str, object]:
        """For one JSON document."""
        source = "file" if self.given else "detector"
        return {"file": printable(self.path.name), "share": round(self.share, 4), "mask": source}


def masked_photos(
    validation: Validation, folder: Path, rules: config.Dataset, detector: Detector, noun: str
) -> Iterator[MaskedPhoto]:
    """The accepted photos in order of their names, with their own masks or the detector's.

    Raises `ModelError` when the detector has no label for `noun`.
    """
    paths, mask_files = candidates(folder, [])
    for path in paths:
        if printable(path.name) not in validation.accepted:
            continue
        decoded = images.decode(path.read_bytes(), rules.max_pixels)
        sidecar = mask_files.get(path.stem)
        own = masks.mask_of(decoded, sidecar.read_bytes() if sidecar else None, rules.max_pixels)
        (region,) = crops.regions(detector, [decoded.image], noun, [own])
        yield _masked(path, decoded.image, region, given=own is not None)


def without_subject(photos: list[MaskedPhoto], noun: str) -> list[Finding]:
    """A soft finding for each photo without a region."""
    return [
        about(
            "soft",
            photo.path,
            "mask",
            f"no {noun} found",
            "a mask of the subject",
            f"add {photo.path.stem}.mask.png, white on the subject",
        )
        for photo in photos
        if not photo.share
    ]


def sheet(photos: list[MaskedPhoto]) -> bytes:
    """PNG with each photo beside its mask, `PAIRS` to a row."""
    cells = [cell for photo in photos for cell in (photo.photo, photo.overlay)]
    across = 2 * PAIRS
    rows = [cells[start : start + across] for start in range(0, len(cells), across)]
    return contact_sheets.sheet_of(rows, SIDE)


def _masked(path: Path, photo: Image.Image, region: Region | None, given: bool) -> MaskedPhoto:
    inside = _area(region, photo)
    pixels = np.asarray(photo, dtype=np.float32)
    outside = pixels * DIMMED + np.asarray(TINT, dtype=np.float32)
    overlay = np.where(inside[..., None], pixels, outside).clip(0, 255).astype(np.uint8)
    return MaskedPhoto(
        path=path,
        share=float(inside.mean()),
        given=given,
        photo=contact_sheets.cell(photo, SIDE),
        overlay=contact_sheets.cell(Image.fromarray(overlay), SIDE),
    )


def _area(region: Region | None, photo: Image.Image) -> "NDArray[np.bool_]":
    """(height, width), true on the mask, or on the box of a region without one."""
    if region is not None and region.mask is not None:
        return region.mask
    area = np.zeros((photo.height, photo.width), dtype=np.bool_)
    if region is not None:
        left, top, right, bottom = region.box
        area[top:bottom, left:right] = True
    return area
