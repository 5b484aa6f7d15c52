"""PRES of the DreamBooth paper (section 4.3): similarity of class images to the photos."""

from typing import Final

from dreambooth_core.config import Kind
from dreambooth_core.metrics import EmbeddingKey, Evidence, Values, mean_cosines

TITLE = "PRES"
ABOUT = (
    "cosine of the class prompt's images with the photos, -1 to 1; compare with the base's value"
)
RANGE = (-1.0, 1.0)
HIGHER_IS_BETTER = False
OF = "class"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
EMBEDDING: Final[EmbeddingKey] = ("identity", "whole")


def measure(evidence: Evidence) -> Values | None:
    """Mean cosine of each class image with all photos by the identity encoder, [-1, 1].

    High when the class prompt yields the subject. The base's value is the reference;
    `prior_drift` is the same on a scale.
    """
    return mean_cosines(evidence.classes.get(EMBEDDING), evidence.photos.get(EMBEDDING))
