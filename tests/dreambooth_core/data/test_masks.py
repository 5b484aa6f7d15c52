"""Masks from a file or from the photo's transparency, in the photo's size."""

import io

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.data.images import ImageRefused, decode
from dreambooth_core.data.masks import mask_of

MANY = 1_000_000
SUBJECT = (5, 3, 20, 12)


def _bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _drawn(size: tuple[int, int], mode: str = "L") -> Image.Image:
    mask = Image.new(mode, size)
    mask.paste(Image.new(mode, (15, 9), "white"), SUBJECT)
    return mask


def _photo(size: tuple[int, int] = (40, 24), alpha: Image.Image | None = None):  # type: ignore[no-untyped-def]
    image = Image.new("RGB", size, "red")
    if alpha is not None:
        image.putalpha(alpha)
    return decode(_bytes(image), MANY)


def test_without_a_mask_the_result_is_none() -> None:
    assert mask_of(_photo(), None, MANY) is None
    opaque = Image.new("L", (40, 24), 255)
    assert mask_of(_photo(alpha=opaque), None, MANY) is None


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P"])
def test_a_mask_file_of_any_mode(mode: str) -> None:
    found = mask_of(_photo(), _bytes(_drawn((40, 24), "L").convert(mode)), MANY)
    assert found is not None
    assert (found.mode, found.size) == ("L", (40, 24))
    assert np.array_equal(np.asarray(found), np.asarray(_drawn((40, 24))))


def test_transparency_is_a_mask_and_a_file_takes_precedence() -> None:
    photo = _photo(alpha=_drawn((40, 24)))
    found = mask_of(photo, None, MANY)
    assert found is not None
    assert found.tobytes() == _drawn((40, 24)).tobytes()
    half = Image.new("L", (40, 24), 128)
    other = mask_of(photo, _bytes(half), MANY)
    assert other is not None
    assert other.tobytes() == half.tobytes()


def test_a_cut_out_subject_is_a_mask_by_its_opacity() -> None:
    cut = Image.new("RGB", (40, 24), "black")
    cut.putalpha(_drawn((40, 24)))
    found = mask_of(_photo(), _bytes(cut), MANY)
    assert found is not None
    assert found.tobytes() == _drawn((40, 24)).tobytes()


def test_a_smaller_mask_is_enlarged_to_the_photo() -> None:
    found = mask_of(_photo((401, 240)), _bytes(_drawn((40, 24))), MANY)
    assert found is not None
    assert found.size == (401, 240)
    assert found.getpixel((120, 70)) == 255
    assert found.getpixel((300, 200)) == 0


@pytest.mark.parametrize("size", [(24, 40), (40, 26), (42, 24)])
def test_another_aspect_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ImageRefused, match="aspect ratio of the photo, 40 x 24"):
        mask_of(_photo(), _bytes(Image.new("L", size, 255)), MANY)


def test_the_aspect_ratio_is_of_the_upright_photo() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = decode(_bytes(Image.new("RGB", (40, 24)), "JPEG", exif=exif), MANY)
    found = mask_of(photo, _bytes(_drawn((24, 40))), MANY)
    assert found is not None
    assert found.size == (24, 40)


def test_an_empty_mask_is_refused() -> None:
    black = Image.new("L", (40, 24))
    with pytest.raises(ImageRefused, match="entirely black"):
        mask_of(_photo(), _bytes(black), MANY)
    with pytest.raises(ImageRefused, match="entirely black"):
        mask_of(_photo(alpha=black), None, MANY)


def test_a_mask_that_is_no_image_is_refused() -> None:
    with pytest.raises(ImageRefused, match="no image format"):
        mask_of(_photo(), b"hello", MANY)
