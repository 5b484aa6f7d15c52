"""Can one tell from the picture which prompt it was made from?"""

from typing import Final

import numpy as np

from dreambooth_core.config import Kind
from dreambooth_core.metrics import Evidence, Sight, Values, nearest

TITLE = "prompt recognised"
ABOUT = "whether the image's own prompt is the nearest of all prompts: 1 or 0"
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
SEES: Final[Sight] = ("clip", "whole")


def measure(evidence: Evidence) -> Values | None:
    """1 when no other prompt's text is nearer to the image than its own by CLIP, else 0.

    Of k equally near ones each gets 1 / k. Prompts that read the same are one; None when all do.
    Unlike cosines this has no scale of its own, and falls at once when all images look like the
    photos.
    """
    images, rows = evidence.generated.by(SEES), evidence.text_rows
    first = {text: place for place, text in reversed(list(enumerate(evidence.texts)))}
    if images is None or rows is None or len(first) < 2:
        return None
    different = sorted(first.values())
    own = [different.index(first[text]) for text in evidence.texts]
    shares = [nearest(row, rows[different])[place] for row, place in zip(images, own, strict=True)]
    return np.array(shares)
