"""CLIP-I on crops around the subject."""

from typing import Final

from dreambooth_core.config import Kind
from dreambooth_core.metrics import EmbeddingKey, Evidence, Values, mean_cosines

TITLE = "CLIP-I (crop)"
ABOUT = "cosine of the cropped subject's CLIP embedding with the photos', -1 to 1"
RANGE = (-1.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = True
SKIPS: frozenset[Kind] = frozenset({"property"})
EMBEDDING: Final[EmbeddingKey] = ("clip", "crop")


def measure(evidence: Evidence) -> Values | None:
    """Mean cosine of each image's crop with the crops of all photos, [-1, 1]."""
    return mean_cosines(evidence.generated.get(EMBEDDING), evidence.photos.get(EMBEDDING))
