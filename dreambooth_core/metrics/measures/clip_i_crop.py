"""Does the subject look alike, whatever stands behind it? CLIP-I on crops."""

from typing import Final

from dreambooth_core.config import Kind
from dreambooth_core.metrics import Evidence, Sight, Values, mean_cosines

TITLE = "CLIP-I (crop)"
ABOUT = "cosine of CLIP's view of the subject alone with the photos', -1 to 1"
RANGE = (-1.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = True
SKIPS: frozenset[Kind] = frozenset({"property"})
SEES: Final[Sight] = ("clip", "crop")


def measure(evidence: Evidence) -> Values | None:
    """Mean cosine of each image's subject with those of all photos, [-1, 1]."""
    return mean_cosines(evidence.generated.by(SEES), evidence.photos.by(SEES))
