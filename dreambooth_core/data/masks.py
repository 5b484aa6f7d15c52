"""Where the subject is in a photo: `<photo stem>.mask.png` beside it, or its own transparency."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from dreambooth_core.data.images import Photo

ENDING = ".mask.png"


def is_mask(path: Path) -> bool:
    """Whether a file claims by its name to be the mask of a photo."""
    return path.name.lower().endswith(ENDING)


def stem(path: Path) -> str:
    """The stem of the photo that a mask belongs to."""
    return path.name[: -len(ENDING)]


def of_photo(photo: "Photo", sidecar: bytes | None, max_pixels: int) -> "Image | None":
    """The mask in the photo's upright size, grey, white on the subject; None when there is none.

    A sidecar counts more than the photo's transparency; where it is transparent itself, its opacity
    is the mask. Raises `ImageRefused`: what `decode` refuses, another aspect ratio, nothing marked.
    """
    from PIL.Image import Resampling

    from dreambooth_core.data.images import ImageRefused, decode

    mask, whole = photo.alpha, photo.image
    if sidecar is not None:
        drawn = decode(sidecar, max_pixels)
        mask = drawn.alpha or drawn.image.convert("L")
    if mask is None:
        return None
    if abs(mask.width * whole.height / whole.width - mask.height) > 1:
        raise ImageRefused(
            "mask",
            f"a mask of {mask.width} x {mask.height} pixels",
            f"the aspect ratio of the photo, {whole.width} x {whole.height} upright",
            "draw it over the upright photo, or remove it",
        )
    if mask.getextrema() == (0, 0):
        raise ImageRefused(
            "mask",
            "a mask that is black all over",
            "some white, where the subject is",
            "draw it anew, or remove it",
        )
    return mask if mask.size == whole.size else mask.resize(whole.size, Resampling.BILINEAR)
