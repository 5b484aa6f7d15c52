"""Images as vision-language models get them: PNG, pixels only, of bounded size."""

import base64
import io
from typing import TYPE_CHECKING

from dreambooth_core.errors import Unanswered

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 100_000_000
"""Width times height of the largest image that is decoded: the default of `dataset.max_pixels`."""


def encoded(image: "Image", max_side: int) -> bytes:
    """A PNG without EXIF, position, profile or text; its longer side is `max_side` pixels at most.

    The same image always gives the same bytes. Raises `Unanswered` for an image of more than
    `MAX_PIXELS`, which is not decoded, and for one whose file is damaged.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps

    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Unanswered(
            f"an image of {width} x {height} pixels is larger than the {MAX_PIXELS // 10**6} megapixels "
            "that are decoded for a vision-language model: make it smaller"
        )
    try:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise Unanswered(f"an image cannot be decoded: {error}") from error
    upright.thumbnail((max_side, max_side), Pillow.Resampling.LANCZOS)
    # a new image, since `upright` keeps the metadata of the old one
    plain = Pillow.new("RGB", upright.size)
    plain.paste(upright)
    file = io.BytesIO()
    plain.save(file, "PNG", compress_level=6)
    return file.getvalue()


def data_url(png: bytes) -> str:
    """The image inside a URL, as chat messages carry it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
