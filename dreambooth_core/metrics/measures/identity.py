"""Identity: subject fidelity on crops, scaled from the base's class images (0) to the photos (1)."""

import math
from typing import Final

from dreambooth_core.config import Kind
from dreambooth_core.metrics import EmbeddingKey, Evidence, Values, mean_cosines, scaled

TITLE = "identity"
ABOUT = "subject fidelity (crop), scaled: 0 as the base's class images, 1 as the photos themselves"
RANGE = (-math.inf, math.inf)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset({"property"})
EMBEDDING: Final[EmbeddingKey] = ("identity", "crop")


def measure(evidence: Evidence) -> Values | None:
    """`subject_fidelity_crop`, scaled: the base's class images at 0, the photos' own mean at 1.

    The scale makes subjects comparable whose photos differ in variety. Below 0 an image is less
    similar to the photos than the base's class images are.
    """
    photos = evidence.photos.get(EMBEDDING)
    return scaled(mean_cosines(evidence.generated.get(EMBEDDING), photos), evidence, EMBEDDING)
