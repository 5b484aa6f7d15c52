"""Changes of a photo with a known effect on the subject's identity, for the calibration of judges."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dreambooth_core.vision.crops import subject_area

if TYPE_CHECKING:
    from PIL.Image import Image

    from dreambooth_core.vision.detectors import Region

BLUR = 1 / 24
"""Standard deviation of the Gaussian, relative to the longer side."""


def area_of(image: "Image", region: "Region | None") -> NDArray[np.bool_]:
    """(height, width), true on the subject; everywhere if its region is unknown."""
    shape = (image.height, image.width)
    return np.ones(shape, dtype=np.bool_) if region is None else subject_area(region, shape)


def with_hue(image: "Image", degrees: float, area: NDArray[np.bool_]) -> "Image":
    """The hue of the area rotated, (0, 360); saturation and value are kept."""
    from PIL import Image as Pillow

    pixels = np.array(image.convert("HSV"))
    hue = pixels[..., 0].astype(np.int64) + round(degrees / 360 * 256)
    pixels[..., 0] = hue % 256
    rotated = np.asarray(Pillow.fromarray(pixels, "HSV").convert("RGB"))
    return Pillow.fromarray(np.where(area[..., None], rotated, np.asarray(image.convert("RGB"))))


def blurred(image: "Image") -> "Image":
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(BLUR * max(image.size)))


def mirrored(image: "Image") -> "Image":
    from PIL import ImageOps

    return ImageOps.mirror(image)


def on_plain(image: "Image", colour: tuple[int, int, int], area: NDArray[np.bool_]) -> "Image":
    """The area on a background of one colour."""
    from PIL import Image as Pillow

    return Pillow.fromarray(
        np.where(
            area[..., None], np.asarray(image.convert("RGB")), np.array(colour, dtype=np.uint8)
        )
    )


def change_of(image: "Image", other: "Image", area: NDArray[np.bool_]) -> float:
    """Mean absolute difference of the area's red, green and blue, 0 to 255."""
    first, second = (np.asarray(one.convert("RGB"), dtype=np.int64) for one in (image, other))
    return float(np.abs(first - second)[area].mean()) if area.any() else 0.0
