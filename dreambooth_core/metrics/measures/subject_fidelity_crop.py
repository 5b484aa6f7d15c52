"""Subject fidelity on crops: the DINO metric of the DreamBooth paper without the background."""

from typing import Final

from dreambooth_core.config import Kind
from dreambooth_core.metrics import EmbeddingKey, Evidence, Values, mean_cosines

TITLE = "subject fidelity (crop)"
ABOUT = "cosine of the cropped subject's identity embedding with the photos', -1 to 1"
RANGE = (-1.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = True
SKIPS: frozenset[Kind] = frozenset({"property"})
EMBEDDING: Final[EmbeddingKey] = ("identity", "crop")


def measure(evidence: Evidence) -> Values | None:
    """Mean cosine of each image's crop with the crops of all photos, [-1, 1].

    On whole images another subject on a photo's background often scores above the right subject
    elsewhere.
    """
    return mean_cosines(evidence.generated.get(EMBEDDING), evidence.photos.get(EMBEDDING))
