import base64
import io

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.data.contact_sheets import SIDE, contact_sheet, data_url
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


def decoded(url) -> tuple[bytes, Image.Image]:
    head, _, body = url.partition(",")
    assert head == "data:image/webp;base64"
    content = base64.b64decode(body)
    return content, Image.open(io.BytesIO(content)).convert("RGB")


def noise(side) -> tuple[bytes, Image.Image]:
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    )
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue(), image


@pytest.mark.parametrize(("size", "expected"), [((64, 64), (64, 64)), ((800, 400), (256, 128))])
def test_embedded_images_have_at_most_the_given_side(size, expected):
    assert decoded(data_url(png(size, "red"), 256))[1].size == expected


def test_an_image_that_fits_is_embedded_without_loss():
    content, image = noise(64)
    assert decoded(data_url(content, 64))[1].tobytes() == image.tobytes()
    assert decoded(data_url(content, 64, 1_000_000))[1].tobytes() != image.tobytes()


@pytest.mark.parametrize(("limit", "side"), [(150_000, 256), (5_000, 81)])
def test_an_image_is_reduced_until_it_fits_the_byte_limit(limit, side):
    content, image = decoded(data_url(noise(256)[0], 256, limit))
    assert len(content) <= limit
    assert image.size == (side, side)
