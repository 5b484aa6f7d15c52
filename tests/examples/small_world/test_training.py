from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from examples.small_world import loop, train_base, train_encoders
from examples.small_world.loop import Recipe, lr_scale, progress, train

RECIPE = Recipe(steps=40, batch=4, learning_rate=1e-2, warmup=1)


def square(network: nn.Module, indices: Tensor) -> Tensor:
    value = network(torch.randn(len(indices), 3)) - 1
    return value.square().mean()


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def test_loop_learns_and_says_so(tmp_path: Path) -> None:
    network = fresh()
    facts = train("line", network, square, 10, RECIPE._replace(steps=400), tmp_path)
    assert facts["steps"] == 400
    assert square(network, torch.arange(64)) < 0.05


def test_loop_goes_on_where_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_time_budget_ends_a_training() -> None:
    recipe = RECIPE._replace(seconds=10)
    assert progress(1, 11, recipe) >= 1
    assert lr_scale(5, 0.999, recipe) == pytest.approx(0.02)


def test_contrast_prefers_true_captions() -> None:
    matches = torch.tensor([[True, False], [False, True]])
    right = train_encoders.soft_contrast(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), matches)
    wrong = train_encoders.soft_contrast(torch.tensor([[0.0, 9.0], [9.0, 0.0]]), matches)
    assert right < 0.01 < 5 < wrong


@pytest.mark.slow
def test_base_is_made_from_nothing_in_stable_diffusions_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusionPipeline

    for name in ("AUTOENCODER", "DENOISER"):
        monkeypatch.setattr(train_base, name, getattr(train_base, name)._replace(batch=2))
    arguments = ["--scale", "0.0001", "--images", "100", "--work", str(tmp_path / "w")]
    monkeypatch.setattr("sys.argv", ["train_base", *arguments, "--out", str(tmp_path / "base")])
    train_base.main()
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "base")
    assert pipeline.unet.config.cross_attention_dim == pipeline.text_encoder.config.hidden_size
