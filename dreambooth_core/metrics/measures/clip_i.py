"""Does it look alike? CLIP-I of Gal et al. 2022 and the DreamBooth paper (section 4.1)."""

from typing import Final

from dreambooth_core.config import Kind
from dreambooth_core.metrics import Evidence, Sight, Values, mean_cosines

TITLE = "CLIP-I"
ABOUT = "cosine of CLIP's view of the whole picture with the photos', -1 to 1"
RANGE = (-1.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = True
SKIPS: frozenset[Kind] = frozenset({"property"})
SEES: Final[Sight] = ("clip", "whole")


def measure(evidence: Evidence) -> Values | None:
    """Mean cosine of each image with all photos, [-1, 1]; the background counts as well."""
    return mean_cosines(evidence.generated.by(SEES), evidence.photos.by(SEES))
