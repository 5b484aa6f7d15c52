"""The self-check: silent when all comes out in the known order, one sentence for what does not."""

from dataclasses import replace

import numpy as np
import pytest

from dreambooth_core.evaluation.sanity_checks import sanity_check
from dreambooth_core.metrics import Evidence, ImageEmbeddings
from dreambooth_core.vision.detectors import Region

CROP, WHOLE = ("identity", "crop"), ("identity", "whole")


def rows(*angles: float) -> np.ndarray:
    return np.array([[np.cos(np.radians(a)), np.sin(np.radians(a))] for a in angles])


def seen(*angles: float) -> ImageEmbeddings:
    return ImageEmbeddings({WHOLE: rows(*angles), CROP: rows(*angles)})


IN_ORDER = Evidence(
    generated=seen(30, 40),
    photos=seen(0, 0, 5),
    base_classes=seen(60, 70),
    kinds=("scene", "scene"),
)
STRANGER = {"the photos of zwx cat": seen(85, 90)}


def test_nothing_is_said_when_all_is_in_order():
    assert sanity_check(IN_ORDER, STRANGER, {}) == ()
    assert sanity_check(IN_ORDER, {}, {}) == ()


@pytest.mark.parametrize(
    ("changes", "others", "names"),
    [
        (
            {"generated": seen(0, 1)},
            {},
            ["the generated images are", "the photos among themselves"],
        ),
        (
            {"base_classes": seen(20, 20)},
            {},
            ["the base's class images are", "the generated images"],
        ),
        (
            {},
            {"the photos of zwx cat": seen(50)},
            ["the photos of zwx cat are", "the base's class images"],
        ),
        (
            {},
            {"the photos of zwx cat": seen(10)},
            ["the photos of zwx cat are", "the base's class images"],
        ),
    ],
)
def test_what_is_out_of_order_is_one_sentence(changes, others, names):
    (sentence,) = sanity_check(replace(IN_ORDER, **changes), others, {})
    assert all(name in sentence for name in names)


def test_another_of_the_class_may_be_nearer_than_what_the_base_draws():
    kin = "the photos of zwx dog"
    assert sanity_check(IN_ORDER, {}, {kin: seen(50)}) == ()
    (sentence,) = sanity_check(IN_ORDER, {}, {kin: seen(20)})
    assert kin in sentence
    assert "the generated images" in sentence


def test_strangers_in_whom_nothing_is_seen_are_told_of():
    unseen = ImageEmbeddings({WHOLE: rows(85), CROP: np.full((1, 2), np.nan)})
    (sentence,) = sanity_check(IN_ORDER, {**STRANGER, "the base's teapot images": unseen}, {})
    assert sentence.startswith("nothing is seen in the base's teapot images: nobody knows")


def test_images_of_property_prompts_have_no_say():
    odd = replace(IN_ORDER, generated=seen(30, 180))
    assert len(sanity_check(odd, {}, {})) == 1
    assert sanity_check(replace(odd, kinds=("scene", "property")), {}, {}) == ()


def test_crops_count_where_there_are_any_and_whole_pictures_else():
    misled = {
        name: ImageEmbeddings({WHOLE: rows(0, 180), CROP: getattr(IN_ORDER, name).rows[CROP]})
        for name in ("generated", "photos", "base_classes")
    }
    assert sanity_check(replace(IN_ORDER, **misled), {}, {}) == ()
    whole = {name: ImageEmbeddings({WHOLE: one.rows[WHOLE]}) for name, one in misled.items()}
    assert len(sanity_check(replace(IN_ORDER, **whole), {}, {})) > 0


def test_a_single_photo_has_no_others_to_be_held_against():
    assert sanity_check(replace(IN_ORDER, photos=seen(0)), {}, {}) == ()


def test_a_finder_that_misses_too_many_is_told_of():
    spot = Region((0, 0, 4, 4))
    for missed, expected in ((1, 0), (2, 1)):
        spots = (spot,) * (10 - missed) + (None,) * missed
        found = replace(IN_ORDER, base=ImageEmbeddings(spots=spots))
        assert len(sanity_check(found, {}, {})) == expected
    assert "80% of the base's images" in sanity_check(found, {}, {})[0]
