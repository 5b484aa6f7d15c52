"""Did the class noun come to mean the subject? DreamBooth's PRES (section 4.3), scaled."""

import math
from typing import Final

from dreambooth_core.config import Kind
from dreambooth_core.metrics import Evidence, Sight, Values, mean_cosines, scaled

TITLE = "prior drift"
ABOUT = "how far the class noun moved, from its old meaning (0) to the subject (1)"
RANGE = (-math.inf, math.inf)
HIGHER_IS_BETTER = False
OF = "class"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
SEES: Final[Sight] = ("identity", "whole")


def measure(evidence: Evidence) -> Values | None:
    """(PRES - PRES of the base) / (photos among themselves - PRES of the base), per class image.

    PRES is the mean cosine of the identity encoder's embeddings, images of the class prompt against
    the photos. 0: the class noun means what it meant to the base, whose own mean is 0; 1: its
    images are as close to the photos as the photos are to each other. Below 0 the class has moved
    away from the subject.
    """
    photos = evidence.photos.by(SEES)
    return scaled(mean_cosines(evidence.classes.by(SEES), photos), evidence, SEES)
