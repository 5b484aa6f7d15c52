"""Is it this very subject, whatever stands behind it? The DreamBooth paper's measure on crops."""

from typing import Final

from dreambooth_core.config import Kind
from dreambooth_core.metrics import Evidence, Sight, Values, mean_cosines

TITLE = "subject fidelity (crop)"
ABOUT = "cosine of the identity encoder's view of the subject alone with the photos', -1 to 1"
RANGE = (-1.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = True
SKIPS: frozenset[Kind] = frozenset({"property"})
SEES: Final[Sight] = ("identity", "crop")


def measure(evidence: Evidence) -> Values | None:
    """Mean cosine of each image's subject with those of all photos, [-1, 1].

    On whole pictures an impostor on a photo's background often beats the subject elsewhere; on
    crops the background has hardly a say.
    """
    return mean_cosines(evidence.generated.by(SEES), evidence.photos.by(SEES))
