"""Text recognition, and the fuzzy search for words and exact search for numbers."""

import pytest
from PIL import Image, ImageDraw, ImageFont

from dreambooth_core.data.documents.pages import Page
from dreambooth_core.data.documents.text_search import DocumentText, recognised, text_of

SHEET = DocumentText(
    [
        "Mug Aurora\nBody: cream st0neware, blue handle",
        "White star. 350ml, EUR 24,90; 1,250 pieces 10-20",
    ]
)


@pytest.mark.parametrize(
    "value",
    [
        *("blue handle", "Blue handles", "a white star on the body", "stoneware", "aurora mug"),
        *("350 ml", "24.90", "24.9 EUR", "1250", "1,250", "20", "cream-white star", "whitestar"),
    ],
)
def test_words_are_found_in_another_form_and_numbers_in_another_notation(value):
    assert SHEET.check("field", value).missing == ()
    assert SHEET.check("field", value).read


@pytest.mark.parametrize(
    ("value", "missing"),
    [
        ("red handle", ("red",)),
        ("360 ml", ("360",)),
        ("2490", ("2490",)),
        ("24.91 EUR", ("24.91",)),
        ("porcelain", ("porcelain",)),
        ("-350", ("-350",)),
        ("bluer lid", ("lid",)),
    ],
)
def test_words_and_numbers_that_are_not_in_the_text_are_named(value, missing):
    found = SHEET.check("colours", value)
    assert (found.read, found.missing, found.field) == (False, missing, "colours")


def test_a_value_without_any_word_is_not_read():
    assert not SHEET.check("name", "the").read
    assert not SHEET.check("name", "!?").read


def test_small_numbers_are_compared_by_value():
    text = DocumentText(["lr 1e-4, loss 0.0500"])
    assert text.check("rows", "0.0001").read
    assert text.check("rows", "0.05").read
    assert not text.check("rows", "0.005").read


def rendered(*lines: str) -> Image.Image:
    image = Image.new("RGB", (480, 40 + 40 * len(lines)), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(22)
    for row, line in enumerate(lines):
        draw.text((20, 20 + 40 * row), line, fill="black", font=font)
    return image


def test_text_of_a_photo_is_recognised_without_the_model():
    pytest.importorskip("rapidocr")
    image = rendered("Material: stoneware", "Blue handle, 350 ml, EUR 24.90")
    text = text_of([Page("label.png", image, text="a text layer")])
    for value in ("stoneware", "blue handle", "350 ml", "24.90", "text layer"):
        assert text.check("field", value).read, value
    assert text.check("field", "375 ml").missing == ("375",)


def test_an_image_without_text_has_none():
    pytest.importorskip("rapidocr")
    assert list(recognised([Image.new("RGB", (100, 100), "white")])) == [""]
