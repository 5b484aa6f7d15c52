"""Diversity among the seeds of a prompt: DIV of the DreamBooth paper (section 4.3) on embeddings."""

from typing import Final

import numpy as np

from dreambooth_core.config import Kind
from dreambooth_core.metrics import EmbeddingKey, Evidence, Values, among

TITLE = "diversity"
ABOUT = "mean distance of an image to the others of its prompt: 1 - cosine, 0 to 2"
RANGE = (0.0, 2.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
EMBEDDING: Final[EmbeddingKey] = ("identity", "whole")


def measure(evidence: Evidence) -> Values | None:
    """Each image's mean distance, 1 - cosine, to the other seeds of its prompt; nan for one seed.

    The paper uses LPIPS instead (`lpips_diversity`).
    """
    rows = evidence.generated.get(EMBEDDING)
    return None if rows is None else np.asarray(1 - among(rows, evidence.prompts))
