"""Subject masks of photos: `<photo stem>.mask.png`, or the photo's own transparency."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from dreambooth_core.data.images import Photo

ENDING = ".mask.png"


def is_mask(path: Path) -> bool:
    """Whether a file has a mask's name."""
    return path.name.lower().endswith(ENDING)


def stem(path: Path) -> str:
    """The stem of a mask's photo."""
    return path.name[: -len(ENDING)]


def mask_of(photo: "Photo", sidecar: bytes | None, max_pixels: int) -> "Image | None":
    """The mask in the upright photo's size, grey levels, white on the subject; None without a mask.

    A mask file takes precedence over the photo's transparency; of a transparent mask file the opacity
    is used. Raises `ImageRefused` as `decode` does, for another aspect ratio, and for a black mask.
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
            "an entirely black mask",
            "white pixels on the subject",
            "draw it again, or remove it",
        )
    return mask if mask.size == whole.size else mask.resize(whole.size, Resampling.BILINEAR)
