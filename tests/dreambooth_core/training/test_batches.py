"""Tests of micro-batches: contents, random access, shares of ranks, prompts of their images."""

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dreambooth_core.config import Loss, Train
from dreambooth_core.diffusion.latents import LatentDistribution
from dreambooth_core.errors import ConfigError
from dreambooth_core.training.batches import Batch, BatchPlan, ClassData, InstanceData, MicroBatches
from dreambooth_core.training.latents import View

SIZES = ((64, 64), (64, 64), (48, 80), (64, 64), (48, 80))
CLASS_SIZES = ((64, 64), (48, 80), (64, 64), (64, 64))
CERTAIN = float("-inf")
"""Log-variance of zero variance: samples equal the mean."""


class Marked:
    """Images whose every value is index + view / 16."""

    def __init__(self, sizes: tuple[tuple[int, int], ...], first: int = 0, masks: bool = True):
        self.sizes, self.first, self.masks = sizes, first, masks
        self.loaded: list[int] = []

    def get(self, index: int, view: int) -> View:
        self.loaded.append(index)
        height, width = self.sizes[index]
        mark = self.first + index + view / 16
        mean = torch.full((4, height // 8, width // 8), mark)
        mask = torch.full((1, height // 8, width // 8), mark / 1000) if self.masks else None
        latents = LatentDistribution(mean, torch.full_like(mean, CERTAIN))
        return View(latents, mask, (height, width, index, view, height, width))


def _plan(**options: Any) -> BatchPlan:
    loss = Loss.model_validate(options.pop("loss", {}))
    of_plan = {name: options.pop(name) for name in ("rank", "ranks", "empty") if name in options}
    train = Train.model_validate({"steps": 20, "batch_size": 2, **options})
    return BatchPlan(seed=5, train=train, loss=loss, **of_plan)


def _steps(prior: str | None = "images", **options: Any) -> MicroBatches:
    """Photos 0-4 with prompts 10-14, class images 100-103 with prompt 1."""
    photos = InstanceData(Marked(SIZES), (0,) * 5, SIZES, (10, 11, 12, 13, 14))
    classes = {
        None: None,
        "images": ClassData((1,), Marked(CLASS_SIZES, 100, masks=False), (1,) * 4, CLASS_SIZES),
        "prediction": ClassData((1,)),
    }
    return MicroBatches(_plan(**options), photos, classes[prior])


def _rows(batch: Batch) -> list[int]:
    return batch["prompts"][batch["prompt_of"]].tolist()


def _same(one: Batch, other: Batch) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name]
        for name, value in one.items()
    )


EVERYTHING = {
    "flip": True,
    "crops": 3,
    "caption_dropout": 0.3,
    "empty": 0,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "loss": {"masks": True, "offset_noise": 0.1, "timestep_sampling": "logit_normal"},
}


def test_contents_of_a_micro_batch() -> None:
    data = _steps(gradient_accumulation_steps=3, loss={"masks": True})
    assert len(data) == 60
    batch = data[7]
    assert (batch["step"], batch["micro"]) == (2, 1)
    height, width = batch["latents"].shape[2:]
    assert (height * 8, width * 8) in SIZES
    assert batch["latents"].shape == batch["noise"].shape == (4, 4, height, width)
    assert batch["mask"].shape == (4, 1, height, width)
    assert batch["times"].shape == (4,)
    assert batch["times"].dtype == torch.float32
    assert batch["is_class"].tolist() == [False, False, True, True]
    assert batch["sizes"].shape == (4, 6)
    assert batch["class_indices"] == data.needed(7)
    assert batch["noise"].unique().numel() == batch["noise"].numel()
    assert batch["times"].unique().numel() == 4
    assert "mask" not in _steps()[7]


def test_batches_do_not_depend_on_the_order_of_access() -> None:
    data = _steps(**EVERYTHING)
    order = list(range(12))
    first = [data[micro] for micro in order]
    random.Random(1).shuffle(order)
    fresh = _steps(**EVERYTHING)
    assert all(_same(fresh[micro], first[micro]) for micro in order)
    assert not torch.equal(first[0]["noise"][0, 0, 0, :4], first[1]["noise"][0, 0, 0, :4])


def test_shares_of_the_ranks_make_up_the_batch() -> None:
    whole = _steps(**EVERYTHING)
    shares = [_steps(**EVERYTHING, rank=rank, ranks=2) for rank in (0, 1)]
    for micro in range(8):
        parts, wanted = [data[micro] for data in shares], whole[micro]
        for name in ("latents", "noise", "times", "is_class", "sizes", "mask"):
            kinds = [part[name].chunk(2) for part in parts]
            joined = torch.cat([kind[of] for of in (0, 1) for kind in kinds])
            assert torch.equal(joined, wanted[name]), name
        assert sum((part["class_indices"] for part in parts), ()) == wanted["class_indices"]
        rows = [_rows(part) for part in parts]
        assert [row for of in (0, 2) for part in rows for row in part[of : of + 2]] == _rows(wanted)


@pytest.mark.parametrize("prior", [None, "prediction"])
def test_the_prior_does_not_change_the_instance_draws(prior: str | None) -> None:
    with_, without = _steps(**EVERYTHING), _steps(prior, **EVERYTHING)
    for micro in range(8):
        one, other = with_[micro], without[micro]
        for name in ("latents", "noise", "times", "sizes", "mask"):
            assert torch.equal(one[name][:4], other[name][:4])
        assert _rows(one)[:4] == _rows(other)[:4]


def test_every_latent_has_its_own_prompt_mask_and_sizes() -> None:
    """Latents and captions in different orders: a bug found in seven training scripts."""
    data = _steps(flip=True, crops=3, batch_size=3, loss={"masks": True})
    seen = Counter()
    for micro in range(100):
        batch = data[micro]
        rows = _rows(batch)
        for at in range(6):
            marks = batch["latents"][at].unique()
            assert marks.numel() == 1
            index, view = int(marks), round(float(marks % 1) * 16)
            is_class = bool(batch["is_class"][at])
            assert is_class == (index >= 100)
            assert rows[at] == (1 if is_class else 10 + index)
            mask = torch.ones(()) if is_class else marks[0] / 1000
            assert torch.equal(batch["mask"][at].unique(), mask[None])
            assert batch["sizes"][at, 2:4].tolist() == [index % 100, view]
            seen[index, view] += 1
    # every photo and class image in every view: 3 crops upright, 3 mirrored
    assert {pair for pair in seen} == {
        (index, view) for index in (*range(5), *range(100, 104)) for view in range(6)
    }


def test_views_are_drawn_uniformly() -> None:
    data = _steps(None, flip=True, crops=2, batch_size=20)
    drawn = Counter(int(view) for micro in range(20) for view in data[micro]["sizes"][:, 3])
    assert set(drawn) == {0, 1, 2, 3}
    # 100 of each: five standard deviations of a binomial draw are 43
    assert all(abs(count - 100) < 43 for count in drawn.values())


def test_class_images_are_used_equally_and_first_in_order() -> None:
    data = _steps(batch_size=1)
    assert isinstance(data.classes, ClassData)
    shown = Counter(index for micro in range(20) for index in data[micro]["class_indices"])
    # the sizes follow the photos: 12 uses of 3 square class images, 8 of the wide one
    assert shown == {0: 4, 2: 4, 3: 4, 1: 8}
    squares = [index for micro in range(20) for index in data.needed(micro) if index != 1]
    assert squares[:3] == [0, 2, 3]


def test_needed_loads_no_image() -> None:
    data = _steps()
    assert [data.needed(micro) for micro in range(5)]
    assert isinstance(data.classes, ClassData)
    assert data.classes.source.loaded == []  # type: ignore[union-attr]
    assert data.photos.source.loaded == []  # type: ignore[attr-defined]


def test_prior_by_prediction_uses_photos_with_the_class_prompt() -> None:
    data = _steps("prediction", batch_size=2, loss={"masks": True})
    for micro in range(10):
        batch = data[micro]
        photos = batch["latents"].flatten(1)[:, 0].tolist()
        assert photos[:2] == photos[2:]
        assert _rows(batch)[2:] == [1, 1]
        assert batch["class_indices"] == data.needed(micro) == ()
        assert batch["mask"][2:].eq(1).all()
        assert not torch.equal(batch["noise"][:2], batch["noise"][2:])
        assert not set(batch["times"][:2].tolist()) & set(batch["times"][2:].tolist())


def test_caption_dropout_has_its_rate_and_spares_class_prompts() -> None:
    data = _steps(caption_dropout=0.25, empty=0, batch_size=40)
    rows = [_rows(data[micro]) for micro in range(10)]
    dropped = sum(row == 0 for found in rows for row in found[:40])
    assert abs(dropped - 100) < 43  # five standard deviations of a binomial draw
    assert all(found[40:] == [1] * 40 for found in rows)
    kept = _steps(batch_size=40)[3]
    assert all(torch.equal(data[3][name], kept[name]) for name in ("latents", "noise", "times"))


def test_dropout_without_a_row_for_the_empty_prompt_raises() -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        _steps(caption_dropout=1)[0]


def test_offset_noise_is_one_number_per_channel() -> None:
    plain, offset = (_steps(batch_size=40, loss={"offset_noise": o})[3]["noise"] for o in (0, 0.5))
    added = offset - plain
    first = added[:, :, :1, :1]
    torch.testing.assert_close(added, first.expand_as(added), atol=1e-6, rtol=0)
    assert first.unique().numel() == first.numel() == 320
    assert abs(first.std().item() - 0.5) < 0.1


def test_times_have_their_distribution() -> None:
    plain = _steps(None, batch_size=300)[0]["times"].double()
    assert plain.min() >= 0
    assert plain.max() < 1
    assert abs(plain.mean().item() - 0.5) < 0.09  # five standard deviations
    shifted = _steps(None, batch_size=300, loss={"timestep_shift": 3.0})[0]["times"].double()
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain), atol=1e-6, rtol=0)


def test_latents_are_sampled_from_their_distribution() -> None:
    class Wide(Marked):
        def get(self, index: int, view: int) -> View:
            found = super().get(index, view)
            spread = torch.full_like(found.latents.mean, 2.0).log() * 2
            return found._replace(latents=replace(found.latents, log_variance=spread))

    photos = InstanceData(Wide(SIZES[:1]), (0,), SIZES[:1], (0,))
    drawn = MicroBatches(_plan(batch_size=100), photos, None)[0]["latents"]
    assert drawn.unique().numel() > 0.99 * drawn.numel()
    assert abs(drawn.std().item() - 2) < 0.05


def test_a_size_without_class_images_is_refused() -> None:
    photos = InstanceData(Marked(SIZES), (0,) * 5, SIZES, (0,) * 5)
    squares = ClassData((1,), Marked(CLASS_SIZES[:1], 100), (1,), CLASS_SIZES[:1])
    with pytest.raises(ConfigError, match="train at 48 x 80 pixels"):
        MicroBatches(_plan(), photos, squares)
