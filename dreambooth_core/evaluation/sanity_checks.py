"""Does the measuring itself make sense? What must come out in a known order, and did not."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from dreambooth_core.metrics import Evidence, ImageEmbeddings, Sight, Values, among, mean_cosines

FOUND = 0.9
"""Share of the pictures in which a finder is to find the subject."""
BASE = "the base's class images"
Rung = tuple[str, float]
"""Some pictures, and their mean cosine with the photos."""


def sanity_check(
    evidence: Evidence, others: Mapping[str, ImageEmbeddings], kin: Mapping[str, ImageEmbeddings]
) -> tuple[str, ...]:
    """Sentences about what cannot be right with encoder, finder, class noun or photos; maybe none.

    By the identity encoder, on crops where there are any: the photos must be more like each other
    than the generated images are like them, and those more than the base's class images; `others`,
    pictures of something else by what to call them, must be less like them than all of these; `kin`,
    photos of others of the class, less than the photos and the generated images are, for what the base
    draws of a class may be further away. That nothing is seen in them is said as well: then nobody
    knows.
    """
    crop: Sight = ("identity", "crop")
    cropped = all(crop in seen.rows for seen in (evidence.photos, evidence.generated))
    sight: Sight = crop if cropped else ("identity", "whole")
    photos = evidence.photos.by(sight)
    ladder = _ladder(evidence, sight)
    subject = [rung for rung in ladder if rung[0] != BASE]
    pairs, unseen = list(pairwise(ladder)), set[str]()
    for pictures, above in ((others, ladder), (kin, subject)):
        known = _known(
            {name: mean_cosines(each.by(sight), photos) for name, each in pictures.items()}
        )
        lowest = min(above, key=lambda rung: rung[1], default=None)
        if lowest is not None:
            pairs += [(lowest, one) for one in known]
            unseen |= pictures.keys() - {name for name, _ in known}
    wrong = [_sentence(upper, lower) for upper, lower in pairs if upper[1] <= lower[1]]
    return (*_unfound(evidence), *map(_unchecked, sorted(unseen)), *wrong)


def _ladder(evidence: Evidence, sight: Sight) -> list[Rung]:
    """What must fall from each to the next."""
    photos = evidence.photos.by(sight)
    generated = mean_cosines(evidence.generated.by(sight), photos)
    if generated is not None:
        generated = generated[[kind != "property" for kind in evidence.kinds]]
    return _known(
        {
            "the photos among themselves": None if photos is None else among(photos),
            "the generated images": generated,
            BASE: mean_cosines(evidence.base_classes.by(sight), photos),
        }
    )


def _known(values: Mapping[str, Values | None]) -> list[Rung]:
    return [
        (name, float(np.nanmean(found)))
        for name, found in values.items()
        if found is not None and not np.isnan(found).all()
    ]


def _sentence(upper: Rung, lower: Rung) -> str:
    return (
        f"{lower[0]} are as close to the photos ({lower[1]:.3f}) as {upper[0]} ({upper[1]:.3f}): "
        "look at the encoder, the finder, the class noun and the photos before you trust the scores"
    )


def _unchecked(name: str) -> str:
    return f"nothing is seen in {name}: nobody knows whether they are less like the photos, as they must be"


def _unfound(evidence: Evidence) -> list[str]:
    """Where a finder has missed too many."""
    sets = {
        "photos": evidence.photos,
        "generated images": evidence.generated,
        "base's images": evidence.base,
    }
    shares = {
        name: sum(spot is not None for spot in seen.spots) / len(seen.spots)
        for name, seen in sets.items()
        if seen.spots
    }
    return [
        f"the finder sees the subject in {share:.0%} of the {name}: scores on crops leave the others out"
        for name, share in shares.items()
        if share < FOUND
    ]
