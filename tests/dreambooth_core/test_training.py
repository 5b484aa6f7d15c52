"""The loop: its data, its exactness over interruptions, its answers to trouble."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_core import adapters, batches, checkpoints, keeper, training
from dreambooth_core.config import Lora, Train
from dreambooth_core.errors import StageFailed
from dreambooth_core.families import load_family
from dreambooth_core.latents import LatentDistribution

FAMILY = load_family("stable_diffusion")
PROMPTS = ("a photo of sks dog", "a photo of a dog")


def _images(count: int, row: int, mirrored: bool = False) -> batches.Images:
    shape = (count * (2 if mirrored else 1), 4, 16, 16)
    mean = torch.randn(shape, generator=torch.Generator().manual_seed(row))
    return batches.Images(LatentDistribution(mean, torch.full(shape, -6.0)), (row,) * count)


def _steps(train: Train, rank: int = 0, ranks: int = 1, prior: bool = True) -> batches.Steps:
    plan = batches.Plan(run_seed=5, train=train, timesteps=1000, rank=rank, ranks=ranks)
    return batches.Steps(plan, _images(3, 0), _images(4, 1) if prior else None)


class Attempt:
    """One process' worth of training, from the base or from a checkpoint, perhaps stopped early."""

    def __init__(self, base: Path, folder: Path, train: Train, stop_after: int = 10**6) -> None:
        self.said: list[tuple[int, Mapping[str, float]]] = []
        parts = FAMILY.load(base, {})
        tokens = FAMILY.tokenize(parts, PROMPTS)
        parts = parts.without("vae")
        trained = adapters.prepare(FAMILY, parts, train, Lora(rank=4, alpha=8), run_seed=5)
        self.parts = parts
        self.module = training.DreamBooth(FAMILY, parts, trained, train, prior_weight=1.0)
        self.module.set_prompts(tokens)
        found = checkpoints.newest(folder)
        self.start = found[1].step if found else 0
        self.keeper = keeper.Keeper(
            folder=folder,
            resume=found[0] if found else None,
            stop=lambda: self._taken() >= stop_after,
            say=lambda step, figures: self.said.append((step, figures)),
            saved=lambda path: None,
        )

    def _taken(self) -> int:
        return int((self.module.losses.abs().sum(1) > 0).sum())

    def run(self, data: batches.Steps) -> dict[str, torch.Tensor]:
        training.fit(self.module, data, self.keeper, self.start)
        weights = {
            f"{part}/{name}": weight.detach().clone()
            for part, found in self.module.trained.items()
            for name, weight in found.items()
        }
        return {**weights, "losses": self.module.losses.clone()}


def _train(**options: Any) -> Train:
    defaults = {"steps": 6, "batch_size": 2, "learning_rate": 1e-3, "lr_schedule": "cosine"}
    return Train.model_validate({**defaults, "checkpoint_every": 100, **options})


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("text_encoder", [True, False])
def test_stopped_and_resumed_is_bitwise_equal(
    tiny_base: Path, tmp_path: Path, method: str, text_encoder: bool
) -> None:
    train = _train(method=method, text_encoder=text_encoder)
    whole = Attempt(tiny_base, tmp_path / "whole", train).run(_steps(train))
    first = Attempt(tiny_base, tmp_path / "parts", train, stop_after=2)
    first.run(_steps(train))
    assert first.keeper.stopped_at == 2
    second = Attempt(tiny_base, tmp_path / "parts", train, stop_after=3)
    second.run(_steps(train))
    assert (second.start, second.keeper.stopped_at) == (2, 3)
    third = Attempt(tiny_base, tmp_path / "parts", train)
    found = third.run(_steps(train))
    assert third.keeper.stopped_at is None
    assert found.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(whole[name], found[name])] == []


@pytest.mark.parametrize("method", ["full", "lora"])
def test_every_trained_weight_moves_and_no_other(
    tiny_base: Path, tmp_path: Path, method: str
) -> None:
    attempt = Attempt(tiny_base, tmp_path, _train(method=method, steps=3))
    components = {name: attempt.parts[name] for name in ("unet", "text_encoder")}
    before = {
        f"{part}/{name}": weight.detach().clone()
        for part, component in components.items()
        for name, weight in component.named_parameters()
    }
    trained = {f"{part}/{name}" for part, found in attempt.module.trained.items() for name in found}
    attempt.run(_steps(attempt.module.train_options))
    moved = {
        f"{part}/{name}"
        for part, component in components.items()
        for name, weight in component.named_parameters()
        if not torch.equal(before[f"{part}/{name}"], weight)
    }
    assert moved <= trained
    # some biases have no say: softmax does not see one that all keys share
    assert all(name.endswith("bias") for name in trained - moved)


def test_loss_goes_down(tiny_base: Path, tmp_path: Path) -> None:
    train = _train(steps=30, lr_schedule="constant", learning_rate=2e-3)
    losses = Attempt(tiny_base, tmp_path, train).run(_steps(train))["losses"]
    assert losses[-6:].mean() < 0.8 * losses[:6].mean()


def test_learning_rates_are_their_own(tiny_base: Path, tmp_path: Path) -> None:
    train = _train(text_encoder_learning_rate=1e-5, lr_warmup_steps=2)
    groups = Attempt(tiny_base, tmp_path, train).module.configure_optimizers().param_groups
    assert [group["lr"] for group in groups] == [1e-3, 1e-5]


def test_a_batch_is_a_function_of_its_step() -> None:
    train = _train()
    first, again = _steps(train)[4], _steps(train)[4]
    assert first["latents"].shape == (4, 4, 16, 16)
    assert first["is_class"].tolist() == [False, False, True, True]
    assert first["prompts"][first["prompt_of"]].tolist() == [0, 0, 1, 1]
    assert all(torch.equal(first[key], again[key]) for key in first if key != "step")
    other = _steps(train)[5]
    assert not torch.equal(first["noise"], other["noise"])
    assert first["noise"].unique().numel() == first["noise"].numel()


def test_ranks_share_the_very_same_batch() -> None:
    train = _train()
    whole, shares = _steps(train)[3], [_steps(train, rank, 2)[3] for rank in (0, 1)]
    for key in ("latents", "noise", "timesteps"):
        by_kind = [part[key].chunk(2) for part in shares]
        joined = torch.cat([kinds[kind] for kind in (0, 1) for kinds in by_kind])
        assert torch.equal(joined, whole[key])


def test_the_prior_does_not_change_the_instance_draws() -> None:
    train = _train()
    with_prior, without = _steps(train)[2], _steps(train, prior=False)[2]
    for key in ("latents", "noise", "timesteps"):
        assert torch.equal(with_prior[key][:2], without[key])


def test_each_photo_is_used_equally() -> None:
    train = _train(steps=6, batch_size=1)
    data = _steps(train)
    means = data.instance.latents.mean
    used = [
        int((means - data[step]["latents"][:1]).flatten(1).norm(dim=1).argmin())
        for step in range(6)
    ]
    assert sorted(used[:3]) == sorted(used[3:]) == [0, 1, 2]


def test_flip_draws_mirror_images_half_of_the_time() -> None:
    train = _train(steps=200, batch_size=1, flip=True)
    plan = batches.Plan(run_seed=0, train=train, timesteps=10)
    images = _images(1, 0, mirrored=True)
    upright = images.latents.mean[:1]
    data = batches.Steps(plan, images, None)
    far = [bool((data[step]["latents"] - upright).abs().mean() > 0.5) for step in range(200)]
    assert 70 < sum(far) < 130


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        ("constant", 9, 1.0),
        ("constant", 0, 0.25),
        ("linear", 7, 0.5),
        ("cosine", 7, 0.5),
        ("cosine", 4, 1.0),
    ],
)
def test_lr_factor(schedule: str, step: int, factor: float) -> None:
    train = _train(steps=10, lr_warmup_steps=4, lr_schedule=schedule)
    assert training.lr_factor(train, step) == pytest.approx(factor)


def test_a_loss_that_is_not_a_number_stops_and_is_not_saved(
    tiny_base: Path, tmp_path: Path
) -> None:
    train = _train(steps=3)
    data = _steps(train)
    data.instance.latents.mean[:] = float("nan")
    with pytest.raises(StageFailed, match="step 0"):
        Attempt(tiny_base, tmp_path, train).run(data)
    assert checkpoints.newest(tmp_path) is None


def test_says_how_far_it_is(tiny_base: Path, tmp_path: Path) -> None:
    train = _train(steps=3)
    attempt = Attempt(tiny_base, tmp_path, train)
    attempt.run(_steps(train))
    assert attempt.said[-1][0] == 3
    assert attempt.said[-1][1]["steps_per_second"] > 0
