"""Prompt gain: prompt fidelity minus the base's on the same seeds."""

from typing import Final

import numpy as np

from dreambooth_core.config import Kind
from dreambooth_core.metrics import EmbeddingKey, Evidence, Values

TITLE = "prompt gain"
ABOUT = "prompt fidelity minus the base's on the same seeds; 0: nothing was forgotten"
RANGE = (-2.0, 2.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
EMBEDDING: Final[EmbeddingKey] = ("clip", "whole")


def measure(evidence: Evidence) -> Values | None:
    """Cosine of each image with its prompt, minus that of the base's image of the same seed.

    The base is prompted without the identifier token.
    """
    ours, theirs = evidence.generated.get(EMBEDDING), evidence.base.get(EMBEDDING)
    if ours is None or theirs is None or evidence.text_rows is None:
        return None
    return np.asarray(((ours - theirs) * evidence.text_rows).sum(axis=1))
