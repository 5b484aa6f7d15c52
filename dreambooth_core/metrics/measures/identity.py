"""Is it this very subject, between any member of its class (0) and its own photos (1)?"""

import math
from typing import Final

from dreambooth_core.config import Kind
from dreambooth_core.metrics import Evidence, Sight, Values, mean_cosines, scaled

TITLE = "identity"
ABOUT = "the subject alone, from any member of its class (0) to the photos among themselves (1)"
RANGE = (-math.inf, math.inf)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset({"property"})
SEES: Final[Sight] = ("identity", "crop")


def measure(evidence: Evidence) -> Values | None:
    """`subject_fidelity_crop`, with the untouched base's class images at 0 and the photos at 1.

    So subjects can be compared whose photos are more or less alike. Below 0 an image is less like
    the photos than a stranger of the class is.
    """
    photos = evidence.photos.by(SEES)
    return scaled(mean_cosines(evidence.generated.by(SEES), photos), evidence, SEES)
