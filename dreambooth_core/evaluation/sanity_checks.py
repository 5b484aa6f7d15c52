"""Sanity checks of an evaluation: order of similarity to the photos, detector coverage, class noun."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dreambooth_core.config import Config
from dreambooth_core.metrics import (
    EmbeddingKey,
    Evidence,
    ImageEmbeddings,
    Values,
    among,
    mean_cosines,
)

if TYPE_CHECKING:
    from PIL.Image import Image

MIN_FOUND = 0.9
"""Share of images in which the detector must find the subject."""
BASE = "the base's class images"
Similarity = tuple[str, float]
"""A phrase for a set of images, and their mean cosine with the photos."""


def sanity_check(
    evidence: Evidence,
    other_classes: Mapping[str, ImageEmbeddings],
    same_class: Mapping[str, ImageEmbeddings],
) -> tuple[str, ...]:
    """Warnings about encoder, detector, class noun or photos; empty when every check passes.

    By the identity encoder, on crops if available, mean similarity to the photos must fall: photos
    among themselves > generated images > the base's class images > `other_classes`; and generated
    images > `same_class` (photos of other subjects of the class, which may be more similar than the
    base's class images). Keys of both mappings are phrases for the warnings. Image sets without an
    embedding are named as unchecked.
    """
    crop: EmbeddingKey = ("identity", "crop")
    cropped = all(crop in images.rows for images in (evidence.photos, evidence.generated))
    key: EmbeddingKey = crop if cropped else ("identity", "whole")
    photos = evidence.photos.get(key)
    descending = _descending(evidence, key)
    of_subject = [one for one in descending if one[0] != BASE]
    pairs, unchecked = list(pairwise(descending)), set[str]()
    for sets, above in ((other_classes, descending), (same_class, of_subject)):
        known = _known({name: mean_cosines(each.get(key), photos) for name, each in sets.items()})
        lowest = min(above, key=lambda one: one[1], default=None)
        if lowest is not None:
            pairs += [(lowest, one) for one in known]
            unchecked |= sets.keys() - {name for name, _ in known}
    return (
        *_low_detection(evidence),
        *(
            f"the detector found no subject in {name}: their similarity to the photos is unchecked"
            for name in sorted(unchecked)
        ),
        *(_out_of_order(upper, lower) for upper, lower in pairs if upper[1] <= lower[1]),
    )


def noun_warnings(config: Config, class_images: "Sequence[Image]") -> tuple[str, ...]:
    """A warning if too few of the base's class images show the class noun.

    Only with a packaged identity encoder, whose classifier finds it; a noun may have no label.
    """
    from dreambooth_core.vision.class_nouns import check_noun, load_classifier

    classifier = load_classifier(config.evaluation.identity)
    noun = config.subject.class_noun
    checked = check_noun(classifier, class_images, noun) if classifier else None
    if checked is None or checked.passed:
        return ()
    return (
        f"{checked.sentence('class images of the base')}: check subject.class_noun and the base",
    )


def _descending(evidence: Evidence, key: EmbeddingKey) -> list[Similarity]:
    """Similarities that must fall from each to the next."""
    photos = evidence.photos.get(key)
    generated = mean_cosines(evidence.generated.get(key), photos)
    if generated is not None:
        generated = generated[[kind != "property" for kind in evidence.kinds]]
    return _known(
        {
            "the photos among themselves": None if photos is None else among(photos),
            "the generated images": generated,
            BASE: mean_cosines(evidence.base_classes.get(key), photos),
        }
    )


def _known(values: Mapping[str, Values | None]) -> list[Similarity]:
    return [
        (name, float(np.nanmean(found)))
        for name, found in values.items()
        if found is not None and not np.isnan(found).all()
    ]


def _out_of_order(upper: Similarity, lower: Similarity) -> str:
    return (
        f"{lower[0]} are as close to the photos ({lower[1]:.3f}) as {upper[0]} ({upper[1]:.3f}): "
        "check the encoder, the detector, the class noun and the photos before trusting the scores"
    )


def _low_detection(evidence: Evidence) -> list[str]:
    """Image sets in which the detector found the subject in less than `MIN_FOUND`."""
    sets = {
        "photos": evidence.photos,
        "generated images": evidence.generated,
        "base's images": evidence.base,
    }
    shares = {
        name: sum(region is not None for region in images.regions) / len(images.regions)
        for name, images in sets.items()
        if images.regions
    }
    return [
        f"the detector found the subject in {share:.0%} of the {name}: scores on crops omit the rest"
        for name, share in shares.items()
        if share < MIN_FOUND
    ]
