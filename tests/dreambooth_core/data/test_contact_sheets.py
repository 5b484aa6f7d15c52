import base64
import io

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.data.contact_sheets import SIDE, contact_sheet, data_url, thumbnail
from dreambooth_core.storage import records
from dreambooth_core.storage.blobs import put_blob


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


@pytest.mark.parametrize(("most", "side"), [(150_000, 256), (5_000, 108)])
def test_an_address_holds_a_whole_picture_in_so_many_bytes(most, side):
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    head, _, body = data_url(file.getvalue(), most).partition(",")
    assert head == "data:image/webp;base64"
    held = base64.b64decode(body)
    assert len(held) <= most
    assert Image.open(io.BytesIO(held)).size == (side, side)
