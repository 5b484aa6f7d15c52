"""Subject fidelity: the DINO metric of the DreamBooth paper (section 4.1)."""

from typing import Final

from dreambooth_core.config import Kind
from dreambooth_core.metrics import EmbeddingKey, Evidence, Values, mean_cosines

TITLE = "subject fidelity"
ABOUT = "cosine of the whole image's identity embedding with the photos', -1 to 1"
RANGE = (-1.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = True
SKIPS: frozenset[Kind] = frozenset({"property"})
EMBEDDING: Final[EmbeddingKey] = ("identity", "whole")


def measure(evidence: Evidence) -> Values | None:
    """Mean cosine of each image with all photos, [-1, 1].

    Self-supervised DINO keeps differences between subjects of one class, which CLIP ignores
    (Ruiz et al. 2023). Includes the background.
    """
    return mean_cosines(evidence.generated.get(EMBEDDING), evidence.photos.get(EMBEDDING))
