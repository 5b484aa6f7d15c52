"""Parsing of bounding boxes in the formats of several models."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_core.vision.language.boxes import Box, boxes_in, boxes_instruction

SIZE = (200, 100)
BOX = Box(0.1, 0.2, 0.5, 1.0)


@pytest.mark.parametrize(
    "text",
    [
        "<|begin_of_box|>[[100, 200, 500, 1000]]<|end_of_box|>",
        "<|begin_of_box|>[100,200,500,1000]<|end_of_box|>",
        "<|begin_of_box|>(100, 200, 500, 1000)<|end_of_box|>",
        "<|begin_of_box|><100 200 500 1000><|end_of_box|>",
        "The mug is at [[100, 200, 500, 1000]].",
        "<think>perhaps [1, 2, 3, 4]</think>[[100, 200, 500, 1000]]",
        '```json\n[{"bbox_2d": [100, 200, 500, 1000], "label": "mug"}]\n```',
        "<|box_start|>(100,200),(500,1000)<|box_end|>",
        "The first of 2: [[100.0, 200.0, 500.0, 1000.0]]",
        "<|begin_of_box|>yes<|end_of_box|> at [100, 200, 500, 1000]",
        "in a thought [1, 2, 3, 4] but <|begin_of_box|>[[100, 200, 500, 1000]]",
    ],
)
def test_brackets_of_any_kind_are_read(text):
    assert boxes_in(text, "norm1000", SIZE) == (BOX,)


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("norm1000", "[100, 200, 500, 1000]"),
        ("norm1", "[0.1, 0.2, 0.5, 1.0]"),
        ("pixels", "[20, 20, 100, 100]"),
    ],
)
def test_every_style_gives_fractions(style, text):
    assert boxes_in(text, style, SIZE) == (BOX,)
    assert "[[x1, y1, x2, y2], ...]" in boxes_instruction(style, SIZE)


def test_several_boxes_keep_their_order():
    text = "[[100, 200, 500, 1000], [0, 0, 10, 10]] and [[5, 5, 6, 6]]"
    assert [box.left for box in boxes_in(text, "norm1000", SIZE)] == [0.1, 0, 0.005]


@pytest.mark.parametrize("text", ["[]", "<|begin_of_box|>[]<|end_of_box|>", "None: [ ]"])
def test_an_empty_list_is_no_box(text):
    assert boxes_in(text, "norm1000", SIZE) == ()


@pytest.mark.parametrize(
    ("style", "text", "words"),
    [
        ("norm1000", "I see it on the left.", "no box"),
        ("norm1000", "", "no box"),
        ("norm1000", "[1, 2, 3]", "no box"),
        ("norm1000", "[0, 0, 1001, 5]", "not within 0 to 1000"),
        ("norm1000", "[-1, 0, 10, 5]", "not within"),
        ("norm1", "[100, 200, 500, 1000]", "not within 0 to 1 "),
        ("pixels", "[0, 0, 100, 101]", "0 to 200 and 0 to 100"),
        ("norm1000", "[500, 0, 100, 10]", "x1 < x2"),
        ("norm1000", "[5, 5, 5, 10]", "x1 < x2"),
    ],
)
def test_an_invalid_box_is_an_error_with_its_reason(style, text, words):
    with pytest.raises(ValueError, match=words):
        boxes_in(text, style, SIZE)


@given(
    st.lists(st.integers(0, 1000), min_size=4, max_size=4, unique=True),
    st.sampled_from(["[{}, {}, {}, {}]", "({},{},{},{})", "({},{}),({},{})", "<{} {} {} {}>"]),
)
def test_formatted_boxes_are_parsed(numbers, form):
    left, right, top, bottom = sorted(numbers[:2]) + sorted(numbers[2:])
    (box,) = boxes_in(form.format(left, top, right, bottom), "norm1000", SIZE)
    assert box == Box(left / 1000, top / 1000, right / 1000, bottom / 1000)


@given(st.text(alphabet="[](){}<>,. 0123456789-\n|box", max_size=200))
def test_any_text_gives_boxes_within_the_image_or_an_error(text):
    try:
        found = boxes_in(text, "norm1000", SIZE)
    except ValueError:
        return
    for box in found:
        assert 0 <= box.left < box.right <= 1
        assert 0 <= box.top < box.bottom <= 1
