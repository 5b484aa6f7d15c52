"""The training loop, warm start, cached latents, losses, and `train_base` from end to end."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from examples.small_world import loop, networks, train_base, train_encoders
from examples.small_world import progress as base_progress
from examples.small_world.corpus import example
from examples.small_world.loop import (
    Recipe,
    State,
    Validation,
    lr_scale,
    progress,
    request_cooldown,
    train,
)
from examples.small_world.progress import psnr
from examples.small_world.render import part_boxes

RECIPE = Recipe(steps=40, batch=4, learning_rate=1e-2, warmup=1)


def square(network: nn.Module, indices: Tensor) -> Tensor:
    value = network(torch.randn(len(indices), 3)) - 1
    return value.square().mean()


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def test_loop_reaches_a_low_loss_and_returns_its_steps(tmp_path: Path) -> None:
    network = fresh()
    facts = train("line", network, square, 10, RECIPE._replace(steps=400), tmp_path)
    assert facts["steps"] == 400
    assert square(network, torch.arange(64)) < 0.05


def test_interrupted_training_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0)
    (tmp_path / "whole").mkdir()
    whole, again = fresh(), fresh()
    train("line", whole, square, 10, RECIPE, tmp_path / "whole")
    calls = 0

    def cut_off(network: nn.Module, indices: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 21:
            raise KeyboardInterrupt
        return square(network, indices)

    with pytest.raises(KeyboardInterrupt):
        train("line", fresh(), cut_off, 10, RECIPE, tmp_path)
    train("line", again, cut_off, 10, RECIPE, tmp_path)
    assert calls == 41
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from examples.small_world import loop
from tests.examples.small_world.test_training import RECIPE, fresh, square

loop.SAVE_EVERY_SECONDS = 0
saved = loop._save

def cut_off(file, network, average, optimizer, state):
    if state.step == 21:
        loop.os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
    saved(file, network, average, optimizer, state)

loop._save = cut_off
loop.train("line", fresh(), square, 10, RECIPE, Path(sys.argv[1]))
"""


def test_training_killed_while_saving_resumes_to_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole, again = fresh(), fresh()
    train("line", whole, square, 10, RECIPE, tmp_path / "whole")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "line.partial").exists()
    assert train("line", again, square, 10, RECIPE, tmp_path)["steps"] == RECIPE.steps
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )


def test_time_limit_ends_a_training() -> None:
    recipe = RECIPE._replace(seconds=10)
    assert progress(State(step=1, seconds=11), recipe) >= 1
    assert lr_scale(5, 0.999, recipe) == pytest.approx(0.02)


def test_requested_cooldown_decays_and_ends_the_training(tmp_path: Path) -> None:
    recipe = RECIPE._replace(steps=10_000, cooldown=10, log_every=1)
    request_cooldown(tmp_path, "line")
    assert train("line", fresh(), square, 10, recipe, tmp_path)["steps"] == 11
    half = progress(State(step=6, cooldown_from=1), recipe)
    assert lr_scale(6, half, recipe) == pytest.approx(0.5)


def test_reached_goal_starts_the_cooldown_and_is_in_the_log(tmp_path: Path) -> None:
    recipe = RECIPE._replace(steps=10_000, cooldown=10, log_every=5)
    validation = Validation(lambda network, images: {"images": images}, 0, {"images": 20})
    facts = train("line", fresh(), square, 10, recipe, tmp_path, validation)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert facts["steps"] == 5 + recipe.cooldown
    assert [line["pictures"] for line in lines if "images" not in line] == [20, 40, 60]
    assert [line["cooldown_from"] for line in lines if "images" in line][4:6] == [None, 5]


def test_warm_start_with_more_latent_channels_computes_the_old_autoencoder() -> None:
    torch.manual_seed(0)
    old, new = networks.autoencoder(4).eval(), networks.autoencoder(16).eval()
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    networks.warm_start(new, old.state_dict(), 16)
    with torch.no_grad():
        before, after = (vae.encode(pixels).latent_dist for vae in (old, new))
        torch.testing.assert_close(after.mean[:, :4], before.mean)
        torch.testing.assert_close(after.logvar[:, :4], before.logvar)
        torch.testing.assert_close(new.decode(after.mean).sample, old.decode(before.mean).sample)


def test_latents_are_encoded_once_per_autoencoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae, calls = networks.autoencoder(2).eval(), []

    def pictures(indices: Tensor) -> Tensor:
        calls.append(indices.tolist())
        return indices.view(-1, 1, 1, 1).expand(-1, 3, 64, 64) / 10

    first = train_base.Latents(vae, pictures, 10, tmp_path)(torch.tensor([3, 7, 3]))
    again = train_base.Latents(vae, pictures, 10, tmp_path)(torch.tensor([7, 3]))
    assert calls == [[3, 7]]
    assert all(torch.equal(a[[1, 2]], b) for a, b in zip(first, again, strict=True))
    other = networks.autoencoder(2).eval()
    train_base.Latents(other, pictures, 10, tmp_path)(torch.tensor([7]))
    assert calls == [[3, 7], [7]]


def test_loss_weights_of_pixels_are_largest_on_eyes() -> None:
    index = next(i for i in range(50) if example("base", i)[0].class_noun == "cat")
    boxes = part_boxes(*example("base", index, "large")[:2])
    weights = train_base.Pictures("large").weights(torch.tensor([index]))[0, 0]
    left, top, right, bottom = boxes["eyes"]
    assert weights[top:bottom, left:right].unique().tolist() == [7.0]
    assert weights.unique().tolist() == [1.0, 3.0, 7.0]


def test_psnr_of_a_box_ignores_pixels_outside() -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    other = picture.copy()
    other[:4, :4] = 51
    assert psnr(picture, other, (4, 4, 8, 8)) == pytest.approx(60)
    assert psnr(picture, other, (0, 0, 4, 4)) == pytest.approx(-20 * np.log10(0.2))
    assert psnr(picture, other) == pytest.approx(-20 * np.log10(0.1))


def test_contrastive_loss_is_lower_for_true_captions() -> None:
    matches = torch.tensor([[True, False], [False, True]])
    right = train_encoders.soft_contrast(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), matches)
    wrong = train_encoders.soft_contrast(torch.tensor([[0.0, 9.0], [9.0, 0.0]]), matches)
    assert right < 0.01 < 5 < wrong


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["SHIPPED", "NEXT"])
def test_base_is_saved_in_stable_diffusions_format(
    plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusionPipeline

    whole: train_base.Plan = getattr(train_base, plan)
    few = whole._replace(
        autoencoder=whole.autoencoder._replace(batch=2), denoiser=whole.denoiser._replace(batch=2)
    )
    monkeypatch.setattr(train_base, plan, few)
    monkeypatch.setattr(base_progress, "INFERENCE_STEPS", 2)
    arguments = ["--scale", "0.000001", "--work", str(tmp_path / "w")]
    arguments += ["--next"] if plan == "NEXT" else []
    monkeypatch.setattr("sys.argv", ["train_base", *arguments, "--out", str(tmp_path / "base")])
    train_base.main()
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "base")
    assert pipeline.unet.config.cross_attention_dim == pipeline.text_encoder.config.hidden_size
    assert pipeline.unet.config.in_channels == whole.latent_channels
    assert bool(list(tmp_path.glob("w/sheets/denoiser-*.png"))) == (plan == "NEXT")
