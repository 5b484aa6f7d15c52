"""Contact sheets (many images as one, a row per prompt), and images as `data:` URLs."""

import base64
import io
import math
from collections.abc import Sequence

from PIL import Image

from dreambooth_core.storage import records
from dreambooth_core.storage.blobs import get_blob
from dreambooth_core.storage.stores import Store

SIDE = 128
"""Pixels of one cell."""
ACROSS = 16
"""Cells per row; longer rows are wrapped."""
EMBEDDED_SIDE = 256
"""Default longer side of an embedded image, in pixels."""
WEBP_SIDE = 16_383
"""Largest side of a WebP image, in pixels."""
QUALITY = 85
"""WebP quality of reduced images."""


def by_prompt(images: Sequence[records.Image]) -> dict[str, list[records.Image]]:
    """Images grouped by prompt, both in the given order."""
    rows: dict[str, list[records.Image]] = {}
    for image in images:
        rows.setdefault(image.prompt, []).append(image)
    return rows


def contact_sheet(store: Store, images: Sequence[records.Image]) -> bytes:
    """PNG with a row per prompt, or roughly square for a single prompt."""
    prompts = list(by_prompt(images).values())
    across = math.ceil(math.sqrt(len(images))) if len(prompts) == 1 else ACROSS
    rows = [row[start : start + across] for row in prompts for start in range(0, len(row), across)]
    # reduced to cells one by one: all images at full size may not fit into memory
    return sheet_of([[cell(_opened(get_blob(store, image.blob))) for image in row] for row in rows])


def sheet_of(rows: Sequence[Sequence[Image.Image]], side: int = SIDE) -> bytes:
    """PNG with rows of images in cells of `side` pixels."""
    sheet = Image.new("RGB", (side * max(map(len, rows), default=1), side * max(len(rows), 1)))
    for down, row in enumerate(rows):
        for across, image in enumerate(row):
            sheet.paste(cell(image.convert("RGB"), side), (across * side, down * side))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def data_url(content: bytes, max_side: int = EMBEDDED_SIDE, max_bytes: int | None = None) -> str:
    """An image file as a WebP `data:` URL of at most `max_side` pixels and `max_bytes` bytes.

    Lossless when the image fits `max_side` and `max_bytes` is None.
    """
    image = _opened(content)
    exact = max_bytes is None and max(image.size) <= max_side
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    while len(webp := _webp(image, exact)) > (max_bytes or math.inf):
        image = image.resize((max(1, image.width * 3 // 4), max(1, image.height * 3 // 4)))
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def _opened(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")


def cell(whole: Image.Image, side: int = SIDE) -> Image.Image:
    """The image scaled to a square of `side` pixels, centred on white; one of that size unchanged."""
    if whole.size == (side, side):
        return whole
    scale = side / max(whole.size)
    size = (max(1, round(whole.width * scale)), max(1, round(whole.height * scale)))
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    square = Image.new("RGB", (side, side), "white")
    square.paste(whole.resize(size, method), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _webp(image: Image.Image, lossless: bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=lossless, quality=QUALITY)
    return buffer.getvalue()
