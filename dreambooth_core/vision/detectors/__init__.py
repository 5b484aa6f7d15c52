"""Detectors, which locate the subject in an image: one kind per file, found by the file's name.

A new kind is one new file with

    def load(rules: config.Detector) -> Detector      # raises ModelError when its model is missing

and, for a kind that asks a vision-language model,

    REMOTE = True
    def load(rules, vision: config.Vision | None, answers: AnswerCache | None) -> Detector
    def digest(rules, vision) -> str                  # of the options that affect its regions

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
    from dreambooth_core.vision.language.model import AnswerCache

KINDS = "dreambooth_core.vision.detectors"


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

    unanswered: int
    """Images so far without a region because a request failed; always 0 for local models."""

    def find(self, images: Sequence[Image], noun: str) -> list[Region | None]:
        """The region of one `noun` in each image; None where it is not found."""
        ...


def load_detector(
    rules: "config.Detector",
    vision: "config.Vision | None" = None,
    answers: "AnswerCache | None" = None,
) -> Detector | None:
    """The configured detector, None without a kind; raises `ModelError` when its model is missing.

    `vision` and `answers` are for a kind that asks a vision-language model: its options, and the cache
    of its answers.
    """
    if rules.kind is None:
        return None
    kind = plugins.load(KINDS, rules.kind)
    found: Detector = kind.load(rules, vision, answers) if is_remote(rules) else kind.load(rules)
    return found


def local_detector(rules: "config.Detector") -> Detector | None:
    """Like `load_detector`; None also for a remote kind: training sends no requests."""
    return None if is_remote(rules) else load_detector(rules)


def is_remote(rules: "config.Detector") -> bool:
    """Whether the detector asks a vision-language model, whose answers may fail and are cached."""
    return rules.kind is not None and getattr(plugins.load(KINDS, rules.kind), "REMOTE", False)


def packaged_weights(kind: str) -> Path | None:
    """The weights that come with a kind of detector; None for one with `evaluation.detector.model`."""
    return getattr(plugins.load(KINDS, kind), "WEIGHTS", None)


def ignores_noun(kind: str) -> bool:
    """Whether a kind of detector marks one object whatever the class noun."""
    return getattr(plugins.load(KINDS, kind), "IGNORES_NOUN", False)
