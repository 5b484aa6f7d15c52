"""CLIP-I of Gal et al. 2022 and the DreamBooth paper (section 4.1)."""

from typing import Final

from dreambooth_core.config import Kind
from dreambooth_core.metrics import EmbeddingKey, Evidence, Values, mean_cosines

TITLE = "CLIP-I"
ABOUT = "cosine of the whole image's CLIP embedding with the photos', -1 to 1"
RANGE = (-1.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = True
SKIPS: frozenset[Kind] = frozenset({"property"})
EMBEDDING: Final[EmbeddingKey] = ("clip", "whole")


def measure(evidence: Evidence) -> Values | None:
    """Mean cosine of each image with all photos, [-1, 1]; includes the background."""
    return mean_cosines(evidence.generated.get(EMBEDDING), evidence.photos.get(EMBEDDING))
