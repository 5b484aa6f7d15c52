"""Attribute accuracy: whether CLIP prefers the prompt's phrases to their alternatives."""

from typing import Final

import numpy as np

from dreambooth_core.config import Kind
from dreambooth_core.metrics import EmbeddingKey, Evidence, Values, nearest

TITLE = "attributes shown"
ABOUT = "share of the prompt's phrases that CLIP tells from their alternatives, 0 to 1"
RANGE = (0.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
EMBEDDING: Final[EmbeddingKey] = ("clip", "whole")


def measure(evidence: Evidence) -> Values | None:
    """Share of correct groups, of those in `evaluation.choices` with a phrase in the prompt.

    A group is correct when the prompt is nearer to the image than with any other phrase of the
    group; a tie of k counts 1 / k. nan for prompts without a group.
    """
    images = evidence.generated.get(EMBEDDING)
    if images is None:
        return None
    groups = [evidence.choices.get(prompt, ()) for prompt in evidence.prompts]
    right = [
        [float(nearest(choice.texts @ row)[choice.right]) for choice in choices]
        for row, choices in zip(images, groups, strict=True)
    ]
    return np.array([np.mean(shares) if shares else np.nan for shares in right])
