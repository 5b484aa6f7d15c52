"""Who finds the subject in a picture: one file each, found by its name.

A new one is one new file here with

    def load(rules: config.Finder) -> Finder      # raises ModelError when its model is missing
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from dreambooth_core import plugins

if TYPE_CHECKING:
    from dreambooth_core import config


@dataclass(frozen=True)
class Region:
    """Where a subject is in a picture."""

    box: tuple[int, int, int, int]
    """Left, top, right, bottom in pixels; right and bottom are outside."""
    mask: NDArray[np.bool_] | None = None
    """(height, width) of the picture, true on the subject; None when only the box is known."""

    @classmethod
    def around(cls, mask: NDArray[np.bool_]) -> "Region | None":
        """The spot of a (height, width) mask; None where nothing is marked."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return None
        left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return cls((int(left), int(top), int(right), int(bottom)), mask)


class Detector(Protocol):
    """Looks for one subject in each picture."""

    def find(self, images: Sequence[Image], noun: str) -> list[Region | None]:
        """Where something called `noun` is in each picture; None where it is not found."""
        ...


def load_detector(rules: "config.Detector") -> Detector | None:
    """The finder of a config, None without one; raises `ModelError` when its model is missing."""
    if rules.kind is None:
        return None
    found: Detector = plugins.load(__name__, rules.kind).load(rules)
    return found
