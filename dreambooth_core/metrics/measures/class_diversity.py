"""Is the class still as various as it was? The other half of prior preservation."""

import math
from typing import Final

import numpy as np

from dreambooth_core.config import Kind
from dreambooth_core.metrics import TIE, Evidence, Sight, Values, among

TITLE = "class diversity"
ABOUT = "how various the class prompt's images are, as a share of the base's (1)"
RANGE = (0.0, math.inf)
HIGHER_IS_BETTER = True
OF = "class"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
SEES: Final[Sight] = ("identity", "whole")


def measure(evidence: Evidence) -> Values | None:
    """Each class image's mean distance, 1 - cosine, to the others, over the base's mean of it.

    1: as various as the untouched base's; 0: one picture again and again.
    """
    tuned, untouched = evidence.classes.by(SEES), evidence.base_classes.by(SEES)
    if tuned is None or untouched is None or len(untouched) < 2:
        return None
    usual = float(np.nanmean(1 - among(untouched)))
    return np.asarray((1 - among(tuned)) / max(usual, TIE))
