"""Does another seed make another picture? DIV of the DreamBooth paper (section 4.3), by embeddings."""

from typing import Final

import numpy as np

from dreambooth_core.config import Kind
from dreambooth_core.metrics import Evidence, Sight, Values, among

TITLE = "diversity"
ABOUT = "how far the images of one prompt are from each other: 1 - cosine, 0 to 2"
RANGE = (0.0, 2.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
SEES: Final[Sight] = ("identity", "whole")


def measure(evidence: Evidence) -> Values | None:
    """Each image's mean distance, 1 - cosine, to the other seeds of its prompt; nan without others.

    The paper's own is LPIPS, which sees pixels; this sees what the identity encoder does.
    """
    rows = evidence.generated.by(SEES)
    return None if rows is None else np.asarray(1 - among(rows, evidence.prompts))
