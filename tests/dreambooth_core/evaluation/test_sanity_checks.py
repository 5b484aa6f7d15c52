"""Sanity checks: no warning for the expected order, one per violation."""

from dataclasses import replace

import numpy as np
import pytest

from dreambooth_core.evaluation.sanity_checks import sanity_check
from dreambooth_core.metrics import Evidence, ImageEmbeddings
from dreambooth_core.vision.detectors import Region

CROP, WHOLE = ("identity", "crop"), ("identity", "whole")


def rows(*angles: float) -> np.ndarray:
    return np.array([[np.cos(np.radians(a)), np.sin(np.radians(a))] for a in angles])


def embedded(*angles: float) -> ImageEmbeddings:
    return ImageEmbeddings({WHOLE: rows(*angles), CROP: rows(*angles)})


IN_ORDER = Evidence(
    generated=embedded(30, 40),
    photos=embedded(0, 0, 5),
    base_classes=embedded(60, 70),
    kinds=("scene", "scene"),
)
OTHER_CLASS = {"the photos of zwx cat": embedded(85, 90)}


def test_the_expected_order_gives_no_warning():
    assert sanity_check(IN_ORDER, OTHER_CLASS, {}) == ()
    assert sanity_check(IN_ORDER, {}, {}) == ()


@pytest.mark.parametrize(
    ("changes", "others", "names"),
    [
        (
            {"generated": embedded(0, 1)},
            {},
            ["the generated images are", "the photos among themselves"],
        ),
        (
            {"base_classes": embedded(20, 20)},
            {},
            ["the base's class images are", "the generated images"],
        ),
        (
            {},
            {"the photos of zwx cat": embedded(50)},
            ["the photos of zwx cat are", "the base's class images"],
        ),
        (
            {},
            {"the photos of zwx cat": embedded(10)},
            ["the photos of zwx cat are", "the base's class images"],
        ),
    ],
)
def test_each_violation_is_one_warning(changes, others, names):
    (sentence,) = sanity_check(replace(IN_ORDER, **changes), others, {})
    assert all(name in sentence for name in names)


def test_other_subjects_of_the_class_may_be_nearer_than_base_images():
    name = "the photos of zwx dog"
    assert sanity_check(IN_ORDER, {}, {name: embedded(50)}) == ()
    (sentence,) = sanity_check(IN_ORDER, {}, {name: embedded(20)})
    assert name in sentence
    assert "the generated images" in sentence


def test_control_images_without_embeddings_are_named_as_unchecked():
    missing = ImageEmbeddings({WHOLE: rows(85), CROP: np.full((1, 2), np.nan)})
    (sentence,) = sanity_check(IN_ORDER, {**OTHER_CLASS, "the base's teapot images": missing}, {})
    assert sentence.startswith("the detector found no subject in the base's teapot images")


def test_images_of_property_prompts_are_ignored():
    odd = replace(IN_ORDER, generated=embedded(30, 180))
    assert len(sanity_check(odd, {}, {})) == 1
    assert sanity_check(replace(odd, kinds=("scene", "property")), {}, {}) == ()


def test_crops_are_compared_if_available_and_whole_images_otherwise():
    misled = {
        name: ImageEmbeddings({WHOLE: rows(0, 180), CROP: getattr(IN_ORDER, name).rows[CROP]})
        for name in ("generated", "photos", "base_classes")
    }
    assert sanity_check(replace(IN_ORDER, **misled), {}, {}) == ()
    whole = {name: ImageEmbeddings({WHOLE: one.rows[WHOLE]}) for name, one in misled.items()}
    assert len(sanity_check(replace(IN_ORDER, **whole), {}, {})) > 0


def test_a_single_photo_is_not_compared_with_itself():
    assert sanity_check(replace(IN_ORDER, photos=embedded(0)), {}, {}) == ()


def test_a_low_detection_rate_gives_a_warning():
    region = Region((0, 0, 4, 4))
    for missed, expected in ((1, 0), (2, 1)):
        regions = (region,) * (10 - missed) + (None,) * missed
        found = replace(IN_ORDER, base=ImageEmbeddings(regions=regions))
        assert len(sanity_check(found, {}, {})) == expected
    assert "80% of the base's images" in sanity_check(found, {}, {})[0]
