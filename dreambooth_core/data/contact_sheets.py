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
    return sheet_of(
        [[_cell(_opened(get_blob(store, image.blob))) for image in row] for row in rows]
    )


def sheet_of(rows: Sequence[Sequence[Image.Image]]) -> bytes:
    """PNG with rows of images."""
    sheet = Image.new("RGB", (SIDE * max(map(len, rows), default=1), SIDE * max(len(rows), 1)))
    for down, row in enumerate(rows):
        for across, image in enumerate(row):
            sheet.paste(_cell(image.convert("RGB")), (across * SIDE, down * SIDE))
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


def _cell(whole: Image.Image) -> Image.Image:
    """The image scaled to a cell, centred on white; a cell unchanged."""
    if whole.size == (SIDE, SIDE):
        return whole
    scale = SIDE / max(whole.size)
    size = (max(1, round(whole.width * scale)), max(1, round(whole.height * scale)))
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    cell = Image.new("RGB", (SIDE, SIDE), "white")
    cell.paste(whole.resize(size, method), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return cell


def _webp(image: Image.Image, lossless: bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=lossless, quality=QUALITY)
    return buffer.getvalue()
