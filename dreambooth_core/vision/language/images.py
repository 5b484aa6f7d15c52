"""Pictures as they leave this machine: pixels alone, and no more of them than the config allows."""

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def encoded(image: "Image", max_side: int) -> bytes:
    """A PNG without EXIF, place, profile or text; its longer side is `max_side` pixels at most.

    The same picture always gives the same bytes.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image).convert("RGB")
    upright.thumbnail((max_side, max_side), Pillow.Resampling.LANCZOS)
    # a new picture: what was known of the old one, its place and its camera, stays with that one
    plain = Pillow.new("RGB", upright.size)
    plain.paste(upright)
    file = io.BytesIO()
    plain.save(file, "PNG", compress_level=6)
    return file.getvalue()


def data_url(png: bytes) -> str:
    """The picture inside a URL, as chat messages carry it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
