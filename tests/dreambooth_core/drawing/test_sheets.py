import io

import pytest
from PIL import Image

from dreambooth_core import records
from dreambooth_core.blobs import put_blob
from dreambooth_core.drawing.sheets import SIDE, contact_sheet, thumbnail


def png(size, colour) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def stored(store, name, prompt, colour):
    blob = put_blob(store, png((16, 16), colour))
    return records.Image(name=name, blob=blob, prompt=prompt)


def test_a_row_per_prompt(file_store):
    images = [
        stored(file_store, "0", "a", "red"),
        stored(file_store, "1", "a", "lime"),
        stored(file_store, "2", "b", "blue"),
    ]
    sheet = Image.open(io.BytesIO(contact_sheet(file_store, images)))
    assert sheet.size == (2 * SIDE, 2 * SIDE)
    middle = SIDE // 2
    assert sheet.getpixel((middle, middle)) == (255, 0, 0)
    assert sheet.getpixel((SIDE + middle, middle)) == (0, 255, 0)
    assert sheet.getpixel((middle, SIDE + middle)) == (0, 0, 255)


def test_one_prompt_makes_a_square(file_store):
    images = [stored(file_store, str(i), "a", "red") for i in range(5)]
    sheet = Image.open(io.BytesIO(contact_sheet(file_store, images)))
    assert sheet.size == (3 * SIDE, 2 * SIDE)


@pytest.mark.parametrize(("size", "expected"), [((64, 64), (64, 64)), ((800, 400), (256, 128))])
def test_thumbnails_are_small(size, expected):
    small = thumbnail(png(size, "red"), 256)
    assert Image.open(io.BytesIO(small)).size == expected


def test_what_is_small_already_stays_byte_for_byte():
    given = png((64, 64), "red")
    assert thumbnail(given, 256) is given
