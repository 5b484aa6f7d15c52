"""Grammar and geometry of spatial relations and counts."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dreambooth_core.config.prompts import SETS
from dreambooth_core.metrics.spatial import (
    RELATIONS,
    Count,
    Placement,
    directions,
    holds,
    is_next_to,
    is_on_top,
    singular,
    statements,
)
from dreambooth_core.vision.language.boxes import Box

MIRRORED = {"left of": "right of", "right of": "left of"}
OPPOSITE = {**MIRRORED, "above": "below", "below": "above"}
NOUNS = st.sampled_from(["red car", "cat", "old oak tree", "wooden box", "stuffed animal"])


def placed(*parts):
    return (Placement(*parts),)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a dog to the left of a red car", placed("dog", "left of", "red car")),
        ("A Dog To The Right Of A Cat", placed("dog", "right of", "cat")),
        ("a dog on the left side of the blue house", placed("dog", "left of", "blue house")),
        ("a dog sitting on top of a wooden box", placed("dog", "on top of", "wooden box")),
        ("a dog on top of a purple rug in a forest", placed("dog", "on top of", "purple rug")),
        ("a photo of a dog under a table, at night", placed("dog", "below", "table")),
        ("a dog that is underneath the bridge", placed("dog", "below", "bridge")),
        ("a red ball above a dog in the snow", placed("red ball", "above", "dog")),
        ("a cat is beside a dog", placed("cat", "next to", "dog")),
        ("a dog with a hat next to a tree", placed("dog", "next to", "tree")),
        (
            "a dog left of a cat and right of a bird",
            (*placed("dog", "left of", "cat"), *placed("dog", "right of", "bird")),
        ),
        (
            "a ball left of a dog and above a cat",
            (*placed("ball", "left of", "dog"), *placed("ball", "above", "cat")),
        ),
        (
            "a dog left of a cat, a bird above a tree",
            (*placed("dog", "left of", "cat"), *placed("bird", "above", "tree")),
        ),
        ("two dogs on the beach", (Count("dog", 2),)),
        ("two dog", (Count("dog", 2),)),
        ("a photo of 3 small dogs and two cats", (Count("small dog", 3), Count("cat", 2))),
        ("a dog with five red berries", (Count("red berry", 5),)),
        ("four children and a dog", (Count("child", 4),)),
        ("a dog next to two cats", (*placed("dog", "next to", "cat"), Count("cat", 2))),
        ("two dogs next to each other", (Count("dog", 2),)),
    ],
)
def test_what_a_prompt_states(prompt, expected):
    assert statements(prompt, "dog") == expected


@pytest.mark.parametrize(
    "prompt",
    [
        "a dog on the beach",
        "a dog under water",
        "a dog under the stars",
        "a dog in front of a house",
        "a dog seen from above",
        "a view from above of a dog",
        "a dog to the left",
        "a dog next to it",
        "a dog in a two-tone coat",
        "one dog",
        "a dog in the 2 o'clock light",
        "two of them",
        "a top hat on a dog",
        "",
    ],
)
def test_what_boxes_cannot_decide_is_not_a_statement(prompt):
    assert statements(prompt, "dog") == ()


def test_of_the_papers_prompts_only_those_on_top_of_something_are_recognised():
    prompts = [
        one.format(subject="dog") for kinds in SETS.values() for p in kinds.values() for one in p
    ]
    for prompt in prompts:
        found = statements(prompt, "dog")
        assert [one.relation for one in found] == ["on top of"] * ("on top of" in prompt)
        assert all(one.subject == "dog" for one in found)


@given(
    st.sampled_from(sorted(RELATIONS)), NOUNS, st.sampled_from(["", " in the snow", ", at night"])
)
def test_every_phrase_is_found_between_any_nouns(phrase, anchor, ending):
    assert statements(f"a photo of a robot {phrase} a {anchor}{ending}", "robot") == (
        Placement("robot", RELATIONS[phrase], anchor),
    )


@given(
    st.text("abs d2,.'{\n\xdf\u200b", max_size=60),
    st.sampled_from(["dog", "a+b", "stuffed animal"]),
)
def test_any_text_has_statements_or_none(prompt, noun):
    for one in statements(prompt, noun):
        assert all(one.nouns)


@given(
    st.lists(st.sampled_from([*sorted(RELATIONS), "a", "two", "dogs", "dog", "cat", ",", "and"]))
)
def test_any_order_of_the_grammars_words_has_statements_or_none(words):
    for one in statements(" ".join(words), "dog"):
        assert all(name == name.strip() != "" for name in one.nouns)


@pytest.mark.parametrize(
    ("plural", "single"),
    [
        ("dogs", "dog"),
        ("berries", "berry"),
        ("boxes", "box"),
        ("benches", "bench"),
        ("horses", "horse"),
        ("vases", "vase"),
        ("houses", "house"),
        ("glasses", "glass"),
        ("buses", "bus"),
        ("people", "person"),
        ("sheep", "sheep"),
        ("glass", None),
        ("bus", None),
        ("dog", None),
        ("o'clock", None),
    ],
)
def test_singulars(plural, single):
    assert singular(plural) == single


def at(x, y, width=0.2, height=0.2) -> Box:
    """A box by its centre."""
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


sizes = st.integers(4, 50).map(lambda n: n / 128)
places = st.integers(52, 204).map(lambda n: n / 256)
boxes = st.builds(at, places, places, sizes, sizes)
"""Corners are multiples of 1 / 256, so that mirroring and swapping round nothing."""


def reference(one: Box, other: Box) -> set[str]:
    """GenEval's `relative_position` by arrays, after its description in the paper's appendix."""
    corners = np.array([[[b.left, b.top], [b.right, b.bottom]] for b in (one, other)])
    offset = np.subtract(*corners.mean(axis=1))
    reach = 0.1 * np.ptp(corners, axis=1).sum(axis=0)
    left = np.sign(offset) * np.clip(np.abs(offset) - reach, 0, None)
    x, y = left / max(np.linalg.norm(offset), 1e-12)
    assume(abs(abs(x) - 0.5) > 1e-9 and abs(abs(y) - 0.5) > 1e-9)
    named = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, true in named.items() if true}


@given(boxes, boxes)
def test_directions_are_genevals(one, other):
    assert directions(one, other) == reference(one, other)


@given(boxes, boxes)
def test_directions_are_antisymmetric(one, other):
    there, back = directions(one, other), directions(other, one)
    assert {OPPOSITE[name] for name in there} == back
    assert not {"left of", "right of"} <= there
    assert not {"above", "below"} <= there


@given(boxes, boxes)
def test_a_mirrored_image_swaps_left_and_right(one, other):
    mirrored = [Box(1 - b.right, b.top, 1 - b.left, b.bottom) for b in (one, other)]
    swapped = {MIRRORED.get(name, name) for name in directions(one, other)}
    assert directions(*mirrored) == swapped
    assert is_on_top(*mirrored) == is_on_top(one, other)
    assert is_next_to(*mirrored) == is_next_to(one, other) == is_next_to(other, one)


@given(boxes)
def test_nothing_is_placed_relative_to_itself(box):
    assert not directions(box, box)
    assert not is_next_to(box, box)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (at(0.2, 0.5), at(0.8, 0.5), {"left of"}),
        (at(0.2, 0.2), at(0.8, 0.8), {"left of", "above"}),
        (at(0.5, 0.9), at(0.5, 0.1), {"below"}),
        (at(0.5, 0.5), at(0.53, 0.5), set()),
        (at(0.5, 0.5, 0.9, 0.9), at(0.6, 0.5, 0.8, 0.8), set()),
    ],
)
def test_directions_of_examples(one, other, expected):
    assert directions(one, other) == expected


@pytest.mark.parametrize(
    ("name", "one", "other", "expected"),
    [
        ("a cup on a table", at(0.5, 0.45, 0.1, 0.1), at(0.5, 0.7, 0.8, 0.4), True),
        ("a dog on a rug around it", at(0.5, 0.5, 0.3, 0.3), at(0.5, 0.6, 0.9, 0.5), True),
        ("a cup under a table", at(0.5, 0.85, 0.1, 0.1), at(0.5, 0.7, 0.8, 0.4), False),
        ("a cup beside a table", at(0.05, 0.45, 0.1, 0.1), at(0.6, 0.7, 0.7, 0.4), False),
        ("a bird far above a house", at(0.5, 0.1, 0.1, 0.1), at(0.5, 0.8, 0.4, 0.3), False),
        ("a dog in front of a small box", at(0.5, 0.6, 0.6, 0.7), at(0.5, 0.7, 0.2, 0.2), False),
    ],
)
def test_on_top_of(name, one, other, expected):
    assert is_on_top(one, other) is expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (at(0.3, 0.5), at(0.6, 0.5), True),
        (at(0.1, 0.5), at(0.9, 0.5), False),
        (at(0.5, 0.2), at(0.5, 0.5), False),
    ],
)
def test_next_to(one, other, expected):
    assert is_next_to(one, other) is expected


def test_angles_are_those_of_the_image():
    """In an image four times as wide as high, a step across is four times a step down."""
    one, other = at(0.4, 0.3, 0.05, 0.05), at(0.6, 0.7, 0.05, 0.05)
    boxes = {"dog": [one], "cat": [other]}
    left = Placement("dog", "left of", "cat")
    assert not holds(left, boxes, aspect=1)
    assert holds(left, boxes, aspect=4)


def test_the_largest_boxes_decide_and_a_missing_thing_fails():
    small, large, anchor = at(0.9, 0.5, 0.05, 0.05), at(0.2, 0.5), at(0.6, 0.5, 0.1, 0.1)
    left = Placement("dog", "left of", "cat")
    assert holds(left, {"dog": [small, large], "cat": [anchor]})
    assert not holds(left, {"dog": [small], "cat": [anchor]})
    assert not holds(left, {"dog": [], "cat": [anchor]})
    assert not holds(left, {"dog": [large], "cat": []})


@given(st.integers(0, 6), st.integers(2, 6))
def test_counts_are_exact(found, number):
    assert holds(Count("dog", number), {"dog": [at(0.5, 0.5)] * found}) == (found == number)
