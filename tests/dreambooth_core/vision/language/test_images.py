"""Encoding of images for requests: no metadata, bounded size."""

import io

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dreambooth_core.errors import Unanswered
from dreambooth_core.vision.language.images import encoded

GPS, ORIENTATION, DESCRIPTION = 0x8825, 0x0112, 0x010E


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def photo(size=(80, 40)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_metadata_are_removed_and_the_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[DESCRIPTION] = "our kitchen"
    exif[GPS] = {1: "N", 2: (52.0, 30.0, 0.0)}
    file = io.BytesIO()
    photo().save(file, "JPEG", exif=exif, comment=b"secret", icc_profile=b"profile of a camera")
    sent = encoded(opened(file.getvalue()), 512)
    shown = opened(sent)
    assert shown.size == (40, 80)
    assert dict(shown.getexif()) == {}
    assert set(shown.info) == set()
    for word in (b"kitchen", b"secret", b"camera", b"eXIf", b"iCCP"):
        assert word not in sent


def test_text_chunks_of_a_generated_image_are_removed():
    info = PngInfo()
    info.add_itxt("prompt", "sks dog")
    file = io.BytesIO()
    photo().save(file, "PNG", pnginfo=info)
    assert b"sks" not in encoded(opened(file.getvalue()), 512)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "I;16"])
def test_images_of_every_mode_are_scaled_down_to_rgb(mode):
    picture = Image.new("I;16", (300, 100)) if mode == "I;16" else photo((300, 100)).convert(mode)
    shown = opened(encoded(picture, 64))
    assert (shown.mode, shown.size) == ("RGB", (64, 21))


def test_small_images_keep_their_pixels():
    picture = photo()
    assert np.array_equal(np.asarray(opened(encoded(picture, 512))), np.asarray(picture))
    assert picture.size == (80, 40)
    assert encoded(picture, 64) == encoded(picture, 64)


def test_an_image_of_more_than_100_megapixels_is_refused_before_it_is_decoded():
    file = io.BytesIO()
    Image.new("1", (10_001, 10_000)).save(file, "PNG")
    with pytest.warns(Image.DecompressionBombWarning):
        large = opened(file.getvalue())
    with pytest.raises(Unanswered, match="10001 x 10000 pixels"):
        encoded(large, 512)
    assert getattr(large, "_im", None) is None


def test_a_large_image_within_the_limit_is_scaled_down():
    assert opened(encoded(Image.new("L", (6000, 4000)), 512)).size == (512, 341)


def test_a_damaged_image_is_one_unanswered_question():
    file = io.BytesIO()
    photo().save(file, "PNG")
    with pytest.raises(Unanswered, match="cannot be decoded"):
        encoded(opened(file.getvalue()[:-200]), 512)
