"""Does the measuring itself make sense? What must come out in a known order, and did not."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from dreambooth_core.metrics import Evidence, Seen, Sight, Values, among, mean_cosines

FOUND = 0.9
"""Share of the pictures in which a finder is to find the subject."""
Rung = tuple[str, float]
"""Some pictures, and their mean cosine with the photos."""


def suspicions(evidence: Evidence, others: Mapping[str, Seen]) -> tuple[str, ...]:
    """Sentences about what cannot be right with encoder, finder, class noun or photos; maybe none.

    By the identity encoder, on crops where there are any: the photos must be more like each other
    than the generated images are like them, and those more than the base's class images; `others`,
    pictures of something else by what to call them, must be less like them than all of these. That
    nothing is seen in them is said as well: then nobody knows.
    """
    crop: Sight = ("identity", "crop")
    cropped = all(crop in seen.rows for seen in (evidence.photos, evidence.generated))
    sight: Sight = crop if cropped else ("identity", "whole")
    ladder, strangers = _ladder(evidence, sight), _strangers(evidence, others, sight)
    lowest = min(ladder, key=lambda rung: rung[1], default=None)
    pairs = [*pairwise(ladder), *((lowest, stranger) for stranger in strangers if lowest)]
    wrong = [_sentence(upper, lower) for upper, lower in pairs if upper[1] <= lower[1]]
    unseen = others.keys() - {name for name, _ in strangers} if ladder else ()
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
            "the base's class images": mean_cosines(evidence.base_classes.by(sight), photos),
        }
    )


def _strangers(evidence: Evidence, others: Mapping[str, Seen], sight: Sight) -> list[Rung]:
    photos = evidence.photos.by(sight)
    return _known({name: mean_cosines(seen.by(sight), photos) for name, seen in others.items()})


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
