"""Whose turn it is: exactly balanced, in proportion, and the same in whatever order one asks."""

import random
from collections import Counter

import pytest

from dreambooth_core.training.batch_sampler import BatchSampler

A, B, C = (64, 64), (48, 80), (80, 48)


def _two_subjects(**changes: object) -> BatchSampler:
    """Two dogs and a cat: 5 photos of two sizes, 3 of one, 4 of two; the dogs share class images."""
    options = {
        "seed": 3,
        "batch_size": 2,
        "subjects": (0,) * 5 + (1,) * 3 + (2,) * 4,
        "sizes": (A, A, B, A, B, A, A, A, C, A, C, C),
        "class_prompts": (7, 7, 9),
        "class_rows": (7, 9, 7, 9, 7, 7, 9, 7, 9, 7, 7, 7),
        "class_sizes": (A, A, B, C, A, B, C, A, C, B, A, A),
    }
    return BatchSampler(**{**options, **changes})  # type: ignore[arg-type]


def test_one_subject_at_one_size_is_one_shuffled_walk() -> None:
    walks = BatchSampler(seed=0, batch_size=2, subjects=(0,) * 5, sizes=(A,) * 5)
    shown = [walks.photo(walks.group(micro), place) for micro in range(10) for place in range(2)]
    epochs = [shown[start : start + 5] for start in range(0, 20, 5)]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 4
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_subjects_take_turns_exactly() -> None:
    walks = _two_subjects()
    for start in range(0, 90, 3):
        turns = {walks.group(micro).subject for micro in range(start, start + 3)}
        assert turns == {0, 1, 2}


def test_sizes_come_up_as_often_as_their_photos() -> None:
    walks = _two_subjects()
    # 60 turns of each subject: whole epochs over 5, 3 and 4 photos
    found = Counter(walks.group(micro)[:2] for micro in range(180))
    assert found == {(0, A): 36, (0, B): 24, (1, A): 60, (2, C): 45, (2, A): 15}


def test_drawn_counts_the_earlier_turns_of_the_group() -> None:
    walks, seen = _two_subjects(), Counter()
    for micro in range(200):
        group = walks.group(micro)
        assert group.drawn == seen[group[:2]]
        seen[group[:2]] += 1


def test_photos_belong_to_their_group_and_are_shown_equally() -> None:
    walks, shown = _two_subjects(), Counter()
    for micro in range(180):
        group = walks.group(micro)
        for place in range(2):
            photo = walks.photo(group, place)
            assert (walks.subjects[photo], walks.sizes[photo]) == group[:2]
            shown[photo] += 1
    of_subject = [
        {shown[photo] for photo in range(12) if walks.subjects[photo] == s} for s in range(3)
    ]
    assert of_subject == [{24}, {40}, {30}]


def test_class_images_fit_and_come_in_order_first() -> None:
    walks = _two_subjects()
    met: dict[tuple[int, tuple[int, int]], list[int]] = {}
    for micro in range(180):
        group = walks.group(micro)
        prompt = walks.class_prompts[group.subject]
        for index in walks.needed(micro):
            assert (walks.class_rows[index], walks.class_sizes[index]) == (prompt, group.size)
            met.setdefault((prompt, group.size), []).append(index)
    for (prompt, size), indices in met.items():
        own = [
            index
            for index in range(12)
            if (walks.class_rows[index], walks.class_sizes[index]) == (prompt, size)
        ]
        assert indices[: len(own)] == own
        whole = len(indices) // len(own) * len(own)
        assert set(Counter(indices[:whole]).values()) == {whole // len(own)}


def test_later_passes_over_the_class_images_are_shuffled() -> None:
    walks = BatchSampler(
        seed=1,
        batch_size=1,
        subjects=(0,),
        sizes=(A,),
        class_prompts=(0,),
        class_rows=(0,) * 20,
        class_sizes=(A,) * 20,
    )
    passes = [[walks.needed(micro)[0] for micro in range(p * 20, p * 20 + 20)] for p in range(3)]
    assert passes[0] == list(range(20))
    assert [sorted(one) for one in passes] == [list(range(20))] * 3
    assert len({tuple(one) for one in passes}) == 3


def test_the_order_of_asking_does_not_matter() -> None:
    asked = list(range(60))
    first = [_two_subjects().needed(micro) for micro in asked]
    random.Random(0).shuffle(asked)
    walks = _two_subjects()
    again = {micro: walks.needed(micro) for micro in asked}
    assert [again[micro] for micro in range(60)] == first


def test_the_prior_does_not_move_the_photos() -> None:
    with_, without = _two_subjects(), _two_subjects(class_rows=(), class_sizes=())
    assert [with_.group(micro) for micro in range(60)] == [
        without.group(micro) for micro in range(60)
    ]
    assert without.needed(3) == ()


@pytest.mark.parametrize("seed", [4, 5])
def test_another_seed_is_another_walk(seed: int) -> None:
    other = _two_subjects(seed=seed)
    assert [other.group(micro) for micro in range(60)] != [
        _two_subjects().group(micro) for micro in range(60)
    ]


def test_far_places_cost_no_more_than_near_ones() -> None:
    # a walk that counted its way would need years for this one
    assert len(_two_subjects().needed(10**15)) == 2
