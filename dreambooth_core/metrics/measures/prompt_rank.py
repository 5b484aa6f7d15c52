"""Prompt recognition: whether the image's own prompt is the nearest of all prompts."""

from typing import Final

import numpy as np

from dreambooth_core.config import Kind
from dreambooth_core.metrics import EmbeddingKey, Evidence, Values, nearest

TITLE = "prompt recognised"
ABOUT = "whether the image's own prompt is the nearest of all prompts: 1 or 0"
RANGE = (0.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
EMBEDDING: Final[EmbeddingKey] = ("clip", "whole")


def measure(evidence: Evidence) -> Values | None:
    """1 when CLIP ranks the image's own prompt above all others, else 0; a tie of k counts 1 / k.

    A prompt's score is its cosine with the image minus its mean cosine with all of the base's
    images, since a generic prompt ("a photo of a dog") is near to every image. Equal texts count as
    one prompt; None when all are equal.
    """
    images, base = evidence.generated.get(EMBEDDING), evidence.base.get(EMBEDDING)
    texts = sorted(set(evidence.texts))
    if images is None or base is None or evidence.text_rows is None or len(texts) < 2:
        return None
    rows = evidence.text_rows[[evidence.texts.index(text) for text in texts]]
    cosines = images @ rows.T - (base @ rows.T).mean(axis=0)
    own = [texts.index(text) for text in evidence.texts]
    return np.array([nearest(row)[index] for row, index in zip(cosines, own, strict=True)])
