"""What is in the repository: the base and the encoders, as a user would load them."""

import json
from pathlib import Path

import pytest
import torch

from examples.small_world import check

ROOT = Path(check.HERE)


def megabytes(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6


def test_sizes_stay_within_what_a_repository_should_hold() -> None:
    assert megabytes(ROOT / "base") <= 40
    assert megabytes(ROOT / "encoders") <= 15


def test_weights_are_safetensors_only() -> None:
    files = [p for part in ("base", "encoders") for p in (ROOT / part).rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".md", ".png"}


def test_base_draws_what_it_is_asked_for(tmp_path: Path) -> None:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(ROOT / "base", dtype=torch.float32)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    told = [("car", "beach"), ("cat", "red"), ("house", "snow"), ("mug", "brick")]
    prompts = [f"a {noun} {check.BACKGROUNDS[place]}" for noun, place in told]
    with torch.inference_mode():
        pixels = check.stack(check.draw(pipeline, prompts))
        encoders = check.Encoders(ROOT / "encoders")
        assert check.class_hits(encoders, pixels, [noun for noun, _ in told]) >= 0.75
        assert check.background_hits(encoders, pixels, told) >= 0.75


@pytest.mark.slow
def test_small_world_reaches_its_bar() -> None:
    figures = check.check(ROOT / "base", ROOT / "encoders", each=1)
    print(json.dumps(figures))
    assert {name: least for name, least in check.BAR.items() if figures[name] < least} == {}
