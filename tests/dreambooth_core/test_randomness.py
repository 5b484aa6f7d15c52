"""Draws depend on (run seed, stream, index) only."""

import torch

from dreambooth_core.randomness import integer, normal, seed_for, shuffled


def test_seed_is_pinned() -> None:
    # a changed hash would silently change every image and every weight
    assert seed_for(0, "class", 0) == 2174018189618594062
    assert 0 <= seed_for(7, "x", 3) < 2**63


def test_seed_differs_in_each_argument() -> None:
    seeds = {seed_for(a, b, c) for a in (0, 1) for b in ("x", "y") for c in (0, 1)}
    assert len(seeds) == 8


def test_draws_do_not_depend_on_the_global_generator() -> None:
    torch.manual_seed(1)
    first = normal(3, "noise", 5, (4, 2))
    torch.manual_seed(2)
    assert torch.equal(first, normal(3, "noise", 5, (4, 2)))
    assert not torch.equal(first, normal(3, "noise", 6, (4, 2)))


def test_integers_cover_their_range() -> None:
    assert {integer(0, "t", index, 4) for index in range(64)} == {0, 1, 2, 3}


def test_shuffled_uses_each_item_once_per_epoch() -> None:
    items = [shuffled(0, "order", position, 5) for position in range(15)]
    epochs = [items[start : start + 5] for start in (0, 5, 10)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
