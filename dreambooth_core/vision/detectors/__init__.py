"""Detectors, which locate the subject in an image: one kind per file, found by the file's name.

A new kind is one new file with

    def load(rules: config.Detector) -> Detector      # raises ModelError when its model is missing

and, where they apply,

    WEIGHTS: Path            # packaged weights, in place of `evaluation.detector.model`
    IGNORES_NOUN = True      # marks one object of any class
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from dreambooth_core import plugins

if TYPE_CHECKING:
    from dreambooth_core import config


@dataclass(frozen=True)
class Region:
    """A subject's box in an image, and its mask if known."""

    box: tuple[int, int, int, int]
    """Left, top, right, bottom in pixels; right and bottom are exclusive."""
    mask: NDArray[np.bool_] | None = None
    """(height, width) of the image, true on the subject."""

    @classmethod
    def around(cls, mask: NDArray[np.bool_]) -> "Region | None":
        """The region of a (height, width) mask; None for an empty mask."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return None
        left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return cls((int(left), int(top), int(right), int(bottom)), mask)


class Detector(Protocol):
    """Locates a subject in images."""

    def find(self, images: Sequence[Image], noun: str) -> list[Region | None]:
        """The region of one `noun` in each image; None where it is not found."""
        ...


def load_detector(rules: "config.Detector") -> Detector | None:
    """The configured detector, None without a kind; raises `ModelError` when its model is missing."""
    if rules.kind is None:
        return None
    found: Detector = plugins.load(__name__, rules.kind).load(rules)
    return found


def packaged_weights(kind: str) -> Path | None:
    """The weights that come with a kind of detector; None for one with `evaluation.detector.model`."""
    return getattr(plugins.load(__name__, kind), "WEIGHTS", None)


def ignores_noun(kind: str) -> bool:
    """Whether a kind of detector marks one object whatever the class noun."""
    return getattr(plugins.load(__name__, kind), "IGNORES_NOUN", False)
