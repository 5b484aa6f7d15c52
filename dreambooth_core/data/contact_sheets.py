"""Contact sheets: many images as one, a row per prompt."""

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
"""Most cells of one row: what is longer goes on in the next one."""


def by_prompt(images: Sequence[records.Image]) -> dict[str, list[records.Image]]:
    """Images under their prompts, both in the given order."""
    rows: dict[str, list[records.Image]] = {}
    for image in images:
        rows.setdefault(image.prompt, []).append(image)
    return rows


def contact_sheet(store: Store, images: Sequence[records.Image]) -> bytes:
    """One PNG: a row per prompt, or about a square when all prompts are the same."""
    prompts = list(by_prompt(images).values())
    across = math.ceil(math.sqrt(len(images))) if len(prompts) == 1 else ACROSS
    rows = [row[start : start + across] for row in prompts for start in range(0, len(row), across)]
    # as cells, for all of them at their full size may not fit into memory
    return sheet_of(
        [[_cell(_opened(get_blob(store, image.blob))) for image in row] for row in rows]
    )


def sheet_of(rows: Sequence[Sequence[Image.Image]]) -> bytes:
    """One PNG of rows of pictures."""
    sheet = Image.new("RGB", (SIDE * max(map(len, rows), default=1), SIDE * max(len(rows), 1)))
    for down, row in enumerate(rows):
        for across, picture in enumerate(row):
            sheet.paste(_cell(picture.convert("RGB")), (across * SIDE, down * SIDE))
    return _png(sheet)


def data_url(png: bytes, most: int = 150_000) -> str:
    """The picture as an address that holds it, for pages that fetch nothing; `most` bytes of it.

    What is larger is made smaller.
    """
    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGB")
    while len(small := _webp(picture)) > most:
        picture = picture.resize((max(1, picture.width * 3 // 4), max(1, picture.height * 3 // 4)))
    return f"data:image/webp;base64,{base64.b64encode(small).decode()}"


def thumbnail(png: bytes, side: int) -> bytes:
    """At most `side` pixels high and wide, as PNG; small images stay as they are."""
    with Image.open(io.BytesIO(png)) as image:
        if max(image.size) <= side:
            return png
        small = image.convert("RGB")
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        return _png(small)


def _opened(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png)) as image:
        return image.convert("RGB")


def _cell(whole: Image.Image) -> Image.Image:
    """The picture in a cell; a cell itself."""
    if whole.size == (SIDE, SIDE):
        return whole
    scale = SIDE / max(whole.size)
    size = (max(1, round(whole.width * scale)), max(1, round(whole.height * scale)))
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    cell = Image.new("RGB", (SIDE, SIDE), "white")
    cell.paste(whole.resize(size, method), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return cell


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()
