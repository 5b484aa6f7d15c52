"""Did training cost anything of the prompt? Prompt fidelity beside the untouched base's."""

from typing import Final

import numpy as np

from dreambooth_core.config import Kind
from dreambooth_core.metrics import Evidence, Sight, Values

TITLE = "prompt gain"
ABOUT = "prompt fidelity less the base's on the same seeds; 0: nothing was forgotten"
RANGE = (-2.0, 2.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
SEES: Final[Sight] = ("clip", "whole")


def measure(evidence: Evidence) -> Values | None:
    """Cosine of each image with its prompt, less that of the base's image of the same seed.

    The base is prompted without the identifier token, which it does not know.
    """
    ours, theirs = evidence.generated.by(SEES), evidence.base.by(SEES)
    if ours is None or theirs is None or evidence.text_rows is None:
        return None
    return np.asarray(((ours - theirs) * evidence.text_rows).sum(axis=1))
