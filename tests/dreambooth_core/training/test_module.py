"""Tests of the loop: exact resume with every stateful option, and the training step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_core.config import Config
from dreambooth_core.errors import StageFailed
from dreambooth_core.training import checkpoints
from dreambooth_core.training.batches import MicroBatches
from dreambooth_core.training.latents import View
from tests.training_by_hand import FAMILY, Attempt, RandomLatents, batches_of, config_of

CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "full without text": {"train": {"text_encoder": False}},
    "lora": {"train": {"method": "lora"}},
    "lora without text": {"train": {"method": "lora", "text_encoder": False}},
    "dora": {"train": {"method": "dora"}},
    "lokr": {"train": {"method": "lokr"}},
    "textual inversion": {
        "train": {"method": "textual_inversion"},
        "prior": {"enabled": False},
    },
    "pivotal until half": {"train": {"method": "pivotal", "text_encoder_until": 0.5}},
    "accumulation": {"train": {"gradient_accumulation_steps": 3}},
    "average": {"train": {"ema": 0.9}},
    "prediction": {"train": {"method": "lora"}, "prior": {"target": "prediction"}},
    "gradient checkpointing": {"train": {"gradient_checkpointing": True}},
    "prodigy": {"optimizer": {"name": "prodigy"}, "train": {"learning_rate": 1.0}},
    "schedule free": {"optimizer": {"name": "schedule_free"}, "train": {"lr_schedule": "constant"}},
    "fused": {"optimizer": {"fused_backward": True}, "train": {"max_grad_norm": None}},
    "all random options": {
        "train": {"method": "lora", "flip": True, "crops": 2, "caption_dropout": 0.3},
        "loss": {
            "kind": "huber",
            "weighting": "min_snr",
            "timestep_sampling": "logit_normal",
            "offset_noise": 0.1,
            "masks": True,
        },
    },
}


@pytest.mark.parametrize("case", CASES)
def test_stopped_twice_and_resumed_is_bitwise_equal(
    tiny_base: Path, tmp_path: Path, case: str
) -> None:
    config = config_of(tiny_base, **{name: dict(part) for name, part in CASES[case].items()})
    whole = Attempt(config, tmp_path / "whole").run()
    first = Attempt(config, tmp_path / "parts", stop_after=2)
    first.run()
    assert (first.callback.state.stopped_at, first.callback.state.reason) == (2, "enough")
    second = Attempt(config, tmp_path / "parts", stop_after=3)
    second.run()
    assert (second.start, second.callback.state.stopped_at) == (2, 3)
    third = Attempt(config, tmp_path / "parts")
    found = third.run()
    assert third.callback.state.stopped_at is None
    assert found.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(whole[name], found[name])] == []


@pytest.mark.parametrize("method", ["full", "lora", "dora", "lokr", "pivotal"])
def test_every_trained_weight_moves_and_no_other(
    tiny_base: Path, tmp_path: Path, method: str
) -> None:
    attempt = Attempt(config_of(tiny_base, train={"method": method, "steps": 3}), tmp_path)
    components = {name: attempt.parts[name] for name in ("unet", "text_encoder")}
    before = {
        f"{part}/{name}": weight.detach().clone()
        for part, component in components.items()
        for name, weight in component.named_parameters()
    }
    trained = set(attempt.module.weights)
    attempt.run()
    moved = {
        f"{part}/{name}"
        for part, component in components.items()
        for name, weight in component.named_parameters()
        if not torch.equal(before[f"{part}/{name}"], weight)
    }
    assert moved <= trained
    # some biases have no effect: softmax is invariant to one shared by all keys
    assert all(name.endswith("bias") for name in trained - moved)


def test_text_encoder_is_frozen_after_text_encoder_until(tiny_base: Path, tmp_path: Path) -> None:
    config = config_of(tiny_base, train={"text_encoder_until": 0.5})
    Attempt(config, tmp_path, stop_after=3).run()
    (after_half,) = [checkpoints.load(path, "parameters") for path in tmp_path.iterdir()]
    end = Attempt(config, tmp_path).run()
    same = {name for name, weight in after_half.items() if torch.equal(weight, end[name])}
    assert {name.split("/")[0] for name in same} == {"text_encoder"}
    assert all(name in same for name in end if name.startswith("text_encoder"))


def test_gradient_accumulation_equals_a_larger_batch(tiny_base: Path, tmp_path: Path) -> None:
    one = {"steps": 2, "learning_rate": 1e-3}
    large = config_of(tiny_base, train={**one, "batch_size": 4})
    small = config_of(tiny_base, train={**one, "batch_size": 1, "gradient_accumulation_steps": 4})
    accumulated = Attempt(small, tmp_path / "a").run()["losses"]
    assert torch.allclose(accumulated, Attempt(large, tmp_path / "b").run()["losses"], rtol=1e-3)


def test_gradient_checkpointing_changes_no_bit(tiny_base: Path, tmp_path: Path) -> None:
    plain = Attempt(config_of(tiny_base), tmp_path / "a").run()
    config = config_of(tiny_base, train={"gradient_checkpointing": True})
    again = Attempt(config, tmp_path / "b").run()
    assert [name for name in plain if not torch.equal(plain[name], again[name])] == []


def test_prior_by_prediction_is_zero_for_an_untrained_adapter(
    tiny_base: Path, tmp_path: Path
) -> None:
    """Base and adapter agree at the first step and diverge later."""
    config = config_of(tiny_base, train={"method": "lora"}, prior={"target": "prediction"})
    losses = Attempt(config, tmp_path).run()["losses"]
    assert losses[0, 1] < 1e-10
    assert losses[-1, 1] > 1e-6


def test_prior_by_prediction_limits_the_drift_of_the_class_noun(
    tiny_base: Path, tmp_path: Path
) -> None:
    """A higher weight keeps the class prediction closer to the base."""
    train = {"method": "lora", "steps": 30, "lr_schedule": "constant", "learning_rate": 3e-3}

    def drift(weight: float) -> float:
        config = config_of(
            tiny_base, train=train, prior={"target": "prediction", "loss_weight": weight}
        )
        return float(Attempt(config, tmp_path / str(weight)).run()["losses"][-5:, 1].mean())

    assert drift(10.0) < 0.5 * drift(0.0)


def test_loss_goes_down(tiny_base: Path, tmp_path: Path) -> None:
    train = {"steps": 30, "lr_schedule": "constant", "learning_rate": 2e-3}
    losses = Attempt(config_of(tiny_base, train=train), tmp_path).run()["losses"]
    assert losses[-6:].mean() < 0.8 * losses[:6].mean()


def test_each_group_has_its_learning_rate(tiny_base: Path, tmp_path: Path) -> None:
    config = config_of(
        tiny_base,
        train={"method": "pivotal", "text_encoder": True, "text_encoder_learning_rate": 1e-5},
        textual_inversion={"learning_rate": 0.01},
    )
    groups = Attempt(config, tmp_path).module.configure_optimizers().param_groups
    assert [group["lr"] for group in groups] == [1e-3, 1e-5, 0.01]
    assert [group["is_text"] for group in groups] == [False, True, True]


def test_a_nan_loss_stops_and_is_not_saved(tiny_base: Path, tmp_path: Path) -> None:
    class NaNLatents(RandomLatents):
        def get(self, index: int, view: int) -> View:
            found = super().get(index, view)
            found.latents.mean.fill_(float("nan"))
            return found

    def nan_batches(config: Config) -> MicroBatches:
        data = batches_of(config)
        return MicroBatches(data.plan, replace(data.photos, source=NaNLatents(0)), data.classes)

    with pytest.raises(StageFailed, match="step 0"):
        Attempt(config_of(tiny_base, train={"steps": 3}), tmp_path).run(nan_batches)
    assert checkpoints.newest(tmp_path) is None


def test_progress_is_reported(tiny_base: Path, tmp_path: Path) -> None:
    attempt = Attempt(config_of(tiny_base, train={"steps": 3}), tmp_path)
    attempt.run()
    assert attempt.reports[-1][0] == 3
    assert attempt.reports[-1][1]["steps_per_second"] > 0
    assert attempt.callback.state.curves.stalls[-1][0] == 3
    assert FAMILY.denoiser in attempt.module.components
