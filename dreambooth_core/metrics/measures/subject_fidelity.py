"""Is it this very subject? DINO's measure of the DreamBooth paper (section 4.1)."""

from typing import Final

from dreambooth_core.config import Kind
from dreambooth_core.metrics import Evidence, Sight, Values, mean_cosines

TITLE = "subject fidelity"
ABOUT = "cosine of the identity encoder's view of the whole picture with the photos', -1 to 1"
RANGE = (-1.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = True
SKIPS: frozenset[Kind] = frozenset({"property"})
SEES: Final[Sight] = ("identity", "whole")


def measure(evidence: Evidence) -> Values | None:
    """Mean cosine of each image with all photos, [-1, 1].

    Ruiz et al. 2023: DINO ViT-S/16, trained without labels, does not learn to overlook what tells
    two subjects of one class apart, as CLIP-I does. The background counts as well.
    """
    return mean_cosines(evidence.generated.by(SEES), evidence.photos.by(SEES))
