"""Tests of the batch sampler: balance, proportions, and random access."""

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


def test_one_group_is_a_sequence_of_shuffled_epochs() -> None:
    sampler = BatchSampler(seed=0, batch_size=2, subjects=(0,) * 5, sizes=(A,) * 5)
    shown = [sampler.photo(sampler.group(micro), slot) for micro in range(10) for slot in range(2)]
    epochs = [shown[start : start + 5] for start in range(0, 20, 5)]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 4
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_subjects_are_balanced_exactly() -> None:
    sampler = _two_subjects()
    for start in range(0, 90, 3):
        subjects = {sampler.group(micro).subject for micro in range(start, start + 3)}
        assert subjects == {0, 1, 2}


def test_sizes_are_drawn_in_proportion_to_their_photos() -> None:
    sampler = _two_subjects()
    # 60 micro-batches of each subject: whole epochs over 5, 3 and 4 photos
    found = Counter(sampler.group(micro)[:2] for micro in range(180))
    assert found == {(0, A): 36, (0, B): 24, (1, A): 60, (2, C): 45, (2, A): 15}


def test_drawn_counts_earlier_micro_batches_of_the_group() -> None:
    sampler, seen = _two_subjects(), Counter()
    for micro in range(200):
        group = sampler.group(micro)
        assert group.drawn == seen[group[:2]]
        seen[group[:2]] += 1


def test_photos_belong_to_their_group_and_are_used_equally() -> None:
    sampler, shown = _two_subjects(), Counter()
    for micro in range(180):
        group = sampler.group(micro)
        for slot in range(2):
            photo = sampler.photo(group, slot)
            assert (sampler.subjects[photo], sampler.sizes[photo]) == group[:2]
            shown[photo] += 1
    of_subject = [
        {shown[photo] for photo in range(12) if sampler.subjects[photo] == s} for s in range(3)
    ]
    assert of_subject == [{24}, {40}, {30}]


def test_class_images_match_the_group_and_their_first_epoch_is_in_order() -> None:
    sampler = _two_subjects()
    used: dict[tuple[int, tuple[int, int]], list[int]] = {}
    for micro in range(180):
        group = sampler.group(micro)
        prompt = sampler.class_prompts[group.subject]
        for index in sampler.needed(micro):
            assert (sampler.class_rows[index], sampler.class_sizes[index]) == (prompt, group.size)
            used.setdefault((prompt, group.size), []).append(index)
    for (prompt, size), indices in used.items():
        own = [
            index
            for index in range(12)
            if (sampler.class_rows[index], sampler.class_sizes[index]) == (prompt, size)
        ]
        assert indices[: len(own)] == own
        whole = len(indices) // len(own) * len(own)
        assert set(Counter(indices[:whole]).values()) == {whole // len(own)}


def test_later_epochs_of_class_images_are_shuffled() -> None:
    sampler = BatchSampler(
        seed=1,
        batch_size=1,
        subjects=(0,),
        sizes=(A,),
        class_prompts=(0,),
        class_rows=(0,) * 20,
        class_sizes=(A,) * 20,
    )
    passes = [[sampler.needed(micro)[0] for micro in range(p * 20, p * 20 + 20)] for p in range(3)]
    assert passes[0] == list(range(20))
    assert [sorted(one) for one in passes] == [list(range(20))] * 3
    assert len({tuple(one) for one in passes}) == 3


def test_batches_do_not_depend_on_the_order_of_access() -> None:
    order = list(range(60))
    first = [_two_subjects().needed(micro) for micro in order]
    random.Random(0).shuffle(order)
    sampler = _two_subjects()
    again = {micro: sampler.needed(micro) for micro in order}
    assert [again[micro] for micro in range(60)] == first


def test_class_images_do_not_change_the_groups() -> None:
    with_, without = _two_subjects(), _two_subjects(class_rows=(), class_sizes=())
    assert [with_.group(micro) for micro in range(60)] == [
        without.group(micro) for micro in range(60)
    ]
    assert without.needed(3) == ()


@pytest.mark.parametrize("seed", [4, 5])
def test_another_seed_gives_another_sequence(seed: int) -> None:
    other = _two_subjects(seed=seed)
    assert [other.group(micro) for micro in range(60)] != [
        _two_subjects().group(micro) for micro in range(60)
    ]


def test_access_takes_constant_time() -> None:
    # a sampler that iterated to this position would need years
    assert len(_two_subjects().needed(10**15)) == 2
