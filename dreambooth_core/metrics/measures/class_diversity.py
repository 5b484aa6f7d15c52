"""Class diversity: variety of the class images, relative to the base's."""

import math
from typing import Final

import numpy as np

from dreambooth_core.config import Kind
from dreambooth_core.metrics import TIE, EmbeddingKey, Evidence, Values, among

TITLE = "class diversity"
ABOUT = "mean distance among the class prompt's images, relative to the base's (1)"
RANGE = (0.0, math.inf)
HIGHER_IS_BETTER = True
OF = "class"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
EMBEDDING: Final[EmbeddingKey] = ("identity", "whole")


def measure(evidence: Evidence) -> Values | None:
    """Each class image's mean distance, 1 - cosine, to the others, divided by the base's mean.

    1: as diverse as the base's class images; 0: all images are equal.
    """
    tuned, base = evidence.classes.get(EMBEDDING), evidence.base_classes.get(EMBEDDING)
    if tuned is None or base is None or len(base) < 2:
        return None
    of_base = float(np.nanmean(1 - among(base)))
    return np.asarray((1 - among(tuned)) / max(of_base, TIE))
