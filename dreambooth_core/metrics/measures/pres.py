"""Did the class noun come to mean the subject? DreamBooth's PRES (section 4.3)."""

from typing import Final

from dreambooth_core.config import Kind
from dreambooth_core.metrics import Evidence, Sight, Values, mean_cosines

TITLE = "PRES"
ABOUT = (
    "cosine of the class prompt's images with the photos, -1 to 1; the base's own is the measure"
)
RANGE = (-1.0, 1.0)
HIGHER_IS_BETTER = False
OF = "class"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
SEES: Final[Sight] = ("identity", "whole")


def measure(evidence: Evidence) -> Values | None:
    """Mean cosine of each class image with all photos by the identity encoder, [-1, 1].

    High when any member of the class has become the subject. How high the class is by nature shows
    the base's value alone; `prior_drift` is this between its fixed points.
    """
    return mean_cosines(evidence.classes.by(SEES), evidence.photos.by(SEES))
