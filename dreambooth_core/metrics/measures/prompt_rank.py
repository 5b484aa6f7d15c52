"""Can one tell from the picture which prompt it was made from?"""

from typing import Final

import numpy as np

from dreambooth_core.config import Kind
from dreambooth_core.metrics import Evidence, Sight, Values, nearest

TITLE = "prompt recognised"
ABOUT = "whether the image's own prompt is the nearest of all prompts: 1 or 0"
RANGE = (0.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
SEES: Final[Sight] = ("clip", "whole")


def measure(evidence: Evidence) -> Values | None:
    """1 when no other prompt's text is nearer to the image than its own by CLIP, else 0.

    A text's nearness is its cosine with the image less its mean cosine with all of the base's images:
    "a photo of a dog" says so little that it is near to every picture of one. Of k equally near
    texts each gets 1 / k. Prompts that read the same are one; None when all do. Unlike cosines this
    has no scale of its own, and it falls at once when all images look like the photos.
    """
    images, base = evidence.generated.by(SEES), evidence.base.by(SEES)
    texts = sorted(set(evidence.texts))
    if images is None or base is None or evidence.text_rows is None or len(texts) < 2:
        return None
    rows = evidence.text_rows[[evidence.texts.index(text) for text in texts]]
    nearness = images @ rows.T - (base @ rows.T).mean(axis=0)
    own = [texts.index(text) for text in evidence.texts]
    return np.array([nearest(row)[place] for row, place in zip(nearness, own, strict=True)])
