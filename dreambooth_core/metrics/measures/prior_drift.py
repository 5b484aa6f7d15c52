"""Prior drift: PRES of the DreamBooth paper (section 4.3), scaled from the base to the photos."""

import math
from typing import Final

from dreambooth_core.config import Kind
from dreambooth_core.metrics import EmbeddingKey, Evidence, Values, mean_cosines, scaled

TITLE = "prior drift"
ABOUT = "how far the class prompt moved from the base's class images (0) to the subject (1)"
RANGE = (-math.inf, math.inf)
HIGHER_IS_BETTER = False
OF = "class"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
EMBEDDING: Final[EmbeddingKey] = ("identity", "whole")


def measure(evidence: Evidence) -> Values | None:
    """(PRES - PRES of the base) / (photos among themselves - PRES of the base), per class image.

    PRES is the mean cosine of the identity encoder's embeddings, class images against photos.
    0: as similar to the photos as the base's class images are, on average; 1: as similar as the
    photos are to each other; below 0: less similar than the base's.
    """
    photos = evidence.photos.get(EMBEDDING)
    return scaled(mean_cosines(evidence.classes.get(EMBEDDING), photos), evidence, EMBEDDING)
