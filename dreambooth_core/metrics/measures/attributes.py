"""Does the picture show what its prompt says, where it could say something else?"""

from typing import Final

import numpy as np

from dreambooth_core.config import Kind
from dreambooth_core.metrics import Evidence, Sight, Values, nearest

TITLE = "attributes shown"
ABOUT = "share of the prompt's phrases that CLIP tells from their alternatives, 0 to 1"
RANGE = (0.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
SEES: Final[Sight] = ("clip", "whole")


def measure(evidence: Evidence) -> Values | None:
    """Of the groups of `evaluation.choices` with a phrase in the prompt, the share that is right.

    Right is a group when the prompt is nearer to the image than it would be with another phrase of
    the group; of k equally near ones each is right to 1 / k. nan for prompts without any.
    """
    images = evidence.generated.by(SEES)
    if images is None:
        return None
    asked = [evidence.choices.get(prompt, ()) for prompt in evidence.prompts]
    right = [
        [float(nearest(choice.texts @ row)[choice.right]) for choice in choices]
        for row, choices in zip(images, asked, strict=True)
    ]
    return np.array([np.mean(shares) if shares else np.nan for shares in right])
