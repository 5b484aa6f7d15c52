"""Do the images of one prompt differ? DIV of the DreamBooth paper (section 4.3): LPIPS among them."""

import itertools
import math

import numpy as np

from dreambooth_core.config import Config, Kind
from dreambooth_core.metrics import Evidence, Values

TITLE = "LPIPS diversity"
ABOUT = "mean LPIPS between an image and the others of its prompt, 0 for copies, and up"
RANGE = (0.0, math.inf)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
SEES = None


def measure(evidence: Evidence) -> Values | None:
    """Mean LPIPS of each image with the others of its prompt; nan for whoever is alone.

    Their mean is the paper's DIV: the mean over all pairs of images of one prompt, where every
    prompt has as many.
    """
    config = evidence.config
    if config is None or config.evaluation.lpips is None:
        return None
    from dreambooth_core.vision.lpips import LpipsNetwork, distance

    network = LpipsNetwork(config.evaluation.lpips, config.evaluation.lpips_revision)
    pictures, values = evidence.generated.pictures, np.full(len(evidence.prompts), np.nan)
    for prompt in dict.fromkeys(evidence.prompts):
        places = [place for place, own in enumerate(evidence.prompts) if own == prompt]
        seen = [network.seen(pictures[place]) for place in places]
        apart = np.zeros((len(places), len(places)))
        for a, b in itertools.combinations(range(len(places)), 2):
            apart[a, b] = apart[b, a] = distance(seen[a], seen[b])
        if len(places) > 1:
            values[places] = apart.sum(axis=1) / (len(places) - 1)
    return values


def model(config: Config) -> str | None:
    """Digest of the backbone; None where LPIPS is left out."""
    rules = config.evaluation
    if rules.lpips is None:
        return None
    from dreambooth_core.vision.encoders import encoder_digest

    return f"lpips-0.1-{encoder_digest(rules.lpips, rules.lpips_revision)[:12]}"
