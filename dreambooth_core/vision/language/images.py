"""Encodes images for requests: PNG of bounded size without metadata."""

import base64
import io
from typing import TYPE_CHECKING

from dreambooth_core.errors import Unanswered

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 100_000_000
"""Width times height of the largest image that is decoded: the default of `dataset.max_pixels`."""


def encoded(image: "Image", max_side: int) -> bytes:
    """The image as PNG without EXIF, GPS position, colour profile or text; longer side at most `max_side`.

    Deterministic. Raises `Unanswered` for an image of more than `MAX_PIXELS`, before decoding, and
    for a damaged file.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps

    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Unanswered(
            f"an image of {width} x {height} pixels exceeds the limit of {MAX_PIXELS // 10**6} megapixels "
            "for vision-language models: scale it down"
        )
    try:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise Unanswered(f"an image cannot be decoded: {error}") from error
    upright.thumbnail((max_side, max_side), Pillow.Resampling.LANCZOS)
    # a new image, because `upright` keeps the metadata
    plain = Pillow.new("RGB", upright.size)
    plain.paste(upright)
    file = io.BytesIO()
    plain.save(file, "PNG", compress_level=6)
    return file.getvalue()


def data_url(png: bytes) -> str:
    """The image as `data:` URL for a chat message."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
