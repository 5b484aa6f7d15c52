"""LPIPS diversity: DIV of the DreamBooth paper (section 4.3), mean LPIPS among a prompt's images."""

import itertools
import math

import numpy as np

from dreambooth_core.config import Config, Kind
from dreambooth_core.metrics import Evidence, Values

TITLE = "LPIPS diversity"
ABOUT = "mean LPIPS of an image with the others of its prompt, 0 (equal) or more"
RANGE = (0.0, math.inf)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
EMBEDDING = None


def measure(evidence: Evidence) -> Values | None:
    """Mean LPIPS of each image with the others of its prompt; nan for a single image.

    With equally many images per prompt the mean of these values is the paper's DIV.
    """
    config = evidence.config
    if config is None or config.evaluation.lpips is None:
        return None
    from dreambooth_core.vision.lpips import LpipsNetwork, distance

    network = LpipsNetwork(config.evaluation.lpips, config.evaluation.lpips_revision)
    images, values = evidence.generated.images, np.full(len(evidence.prompts), np.nan)
    for prompt in dict.fromkeys(evidence.prompts):
        indices = [index for index, own in enumerate(evidence.prompts) if own == prompt]
        features = [network.features(images[index]) for index in indices]
        distances = np.zeros((len(indices), len(indices)))
        for a, b in itertools.combinations(range(len(indices)), 2):
            distances[a, b] = distances[b, a] = distance(features[a], features[b])
        if len(indices) > 1:
            values[indices] = distances.sum(axis=1) / (len(indices) - 1)
    return values


def model(config: Config) -> str | None:
    """Digest of the backbone; None without `evaluation.lpips`."""
    rules = config.evaluation
    if rules.lpips is None:
        return None
    from dreambooth_core.vision.encoders import encoder_digest

    return f"lpips-0.1-{encoder_digest(rules.lpips, rules.lpips_revision)[:12]}"
