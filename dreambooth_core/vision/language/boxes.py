"""Bounding boxes of a response, converted from the model's coordinates to fractions of the image."""

import re
from dataclasses import dataclass

from dreambooth_core.config.vision_profiles import BoxStyle
from dreambooth_core.vision.language.answers import without_reasoning

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_BETWEEN = r"\s*,?\s*"
_CORNERS = r"\s*(?:[\])>]\s*,?\s*[\[(<]|,|\s)\s*"
_BOX = re.compile(
    rf"[\[(<{{]\s*{_NUMBER}{_BETWEEN}{_NUMBER}{_CORNERS}{_NUMBER}{_BETWEEN}{_NUMBER}\s*[\])>}}]"
)
_EMPTY = re.compile(r"\[\s*\]")
_MARKED = re.compile(r"<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|$)", re.DOTALL)
_ASKED = {
    "norm1000": "0 to 1000, where 1000 is the image's width for x and its height for y",
    "norm1": "0 to 1, as fractions of the image's width and height",
    "pixels": "pixels of this image, which is {width} pixels wide and {height} high",
}


@dataclass(frozen=True)
class Box:
    """A rectangle in an image, as fractions of its width and height in [0, 1]; left < right, top < bottom."""

    left: float
    top: float
    right: float
    bottom: float


def boxes_instruction(style: BoxStyle, size: tuple[int, int]) -> str:
    """The instruction that requests boxes in a coordinate style; `size` is (width, height) in pixels."""
    units = _ASKED[style].format(width=size[0], height=size[1])
    return (
        "Answer with the bounding boxes and nothing else, as [[x1, y1, x2, y2], ...] with the top left and "
        f"the bottom right corner of each, in units of {units}. Answer [] if it is not in the image."
    )


def boxes_in(text: str, style: BoxStyle, size: tuple[int, int]) -> tuple[Box, ...]:
    """The boxes in a response, in its order; brackets of any kind, with or without GLM's box marks.

    `size` is (width, height) in pixels of the image as sent. An empty list gives no box. Raises
    `ValueError` without a box or an empty list, for coordinates out of range and for swapped corners;
    its message is used as the correction's text.
    """
    answer = without_reasoning(text)
    marked = " ".join(_MARKED.findall(answer))
    # GLM also encloses final answers other than boxes in these marks
    source = marked if _BOX.search(marked) or _EMPTY.search(marked) else answer
    found = _BOX.findall(source)
    if not found and not _EMPTY.search(source):
        raise ValueError("it holds no box and no empty list")
    return tuple(_box([float(number) for number in numbers], style, size) for numbers in found)


def _box(numbers: list[float], style: BoxStyle, size: tuple[int, int]) -> Box:
    width, height = {"norm1000": (1000, 1000), "norm1": (1, 1), "pixels": size}[style]
    scales = (width, height, width, height)
    shares = [number / scale for number, scale in zip(numbers, scales, strict=True)]
    if min(shares) < 0 or max(shares) > 1:
        raise ValueError(f"the box {numbers} is not within 0 to {width} and 0 to {height}")
    box = Box(*shares)
    if box.left >= box.right or box.top >= box.bottom:
        raise ValueError(f"the box {numbers} must have x1 < x2 and y1 < y2")
    return box
