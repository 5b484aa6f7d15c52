"""Metrics: one file each, found by its name; all measure the same evidence.

A new metric is one new file here with

    OF_PHOTOS: bool                            # can the photos be measured among themselves?
    def measure(evidence: Evidence) -> float   # finite
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreambooth_core import plugins

Embeddings = NDArray[np.float64]
"""Rows of unit length, one per image or text."""


@dataclass(frozen=True)
class Evidence:
    """Embeddings of what one model made, and of what it is held against; all rows have length 1."""

    identity_generated: Embeddings
    """(images, d) identity encoder's CLS token, evaluation prompts x seeds."""
    identity_instance: Embeddings
    """(photos, d) the same of the instance images."""
    clip_generated: Embeddings
    """(images, e) CLIP's image tower."""
    clip_instance: Embeddings
    """(photos, e)"""
    clip_texts: Embeddings
    """(images, e) CLIP's text tower, on each image's prompt without the identifier token."""
    identity_class: Embeddings
    """(class images, d) of the class prompt, by this model."""
    identity_base_class: Embeddings
    """(class images, d) of the class prompt, by the untouched base, same seeds."""


def measure_all(evidence: Evidence) -> dict[str, float]:
    """Every metric of this package; raises `ValueError` when one is not finite."""
    found = {}
    for name in plugins.names(__name__):
        value = float(plugins.load(__name__, name).measure(evidence))
        if not np.isfinite(value):
            raise ValueError(f"metric {name} is not finite")
        found[name] = value
    return found


def measure_photos(evidence: Evidence) -> dict[str, float]:
    """What the photos score among themselves: each against the others, averaged.

    Only metrics with `OF_PHOTOS`; empty for a single photo, which has no others.
    """
    count = len(evidence.identity_instance)
    if count < 2:
        return {}
    modules = {name: plugins.load(__name__, name) for name in plugins.names(__name__)}
    held_out = [_leave_out(evidence, index) for index in range(count)]
    return {
        name: float(np.mean([module.measure(each) for each in held_out]))
        for name, module in modules.items()
        if module.OF_PHOTOS
    }


def mean_cosine(left: Embeddings, right: Embeddings) -> float:
    """Mean over all pairs of a row of `left` and a row of `right`, in [-1, 1]."""
    return float((left @ right.T).mean())


def unit(rows: Any) -> Embeddings:
    """Rows scaled to length 1, as float64; a row of zeros stays one."""
    array = np.asarray(rows, dtype=np.float64)
    length = np.linalg.norm(array, axis=-1, keepdims=True)
    return np.asarray(array / np.maximum(length, 1e-12), dtype=np.float64)


def _leave_out(evidence: Evidence, index: int) -> Evidence:
    """Photo `index` in the place of the generated images, the others as the photos."""
    return replace(
        evidence,
        identity_generated=evidence.identity_instance[index : index + 1],
        identity_instance=np.delete(evidence.identity_instance, index, axis=0),
        clip_generated=evidence.clip_instance[index : index + 1],
        clip_instance=np.delete(evidence.clip_instance, index, axis=0),
    )
