"""Prompt fidelity: CLIP-T of the DreamBooth paper (section 4.1)."""

from typing import Final

from dreambooth_core.config import Kind
from dreambooth_core.metrics import EmbeddingKey, Evidence, Values

TITLE = "prompt fidelity"
ABOUT = "cosine of the image's CLIP embedding with its prompt without the identifier, -1 to 1"
RANGE = (-1.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
EMBEDDING: Final[EmbeddingKey] = ("clip", "whole")


def measure(evidence: Evidence) -> Values | None:
    """Cosine of each image with its own prompt, [-1, 1].

    The prompt is encoded without the identifier token, which CLIP has not learned.
    """
    images, texts = evidence.generated.get(EMBEDDING), evidence.text_rows
    return None if images is None or texts is None else (images * texts).sum(axis=1)
