"""The shipped base and encoders: size, format, and figures on held-out seeds."""

import json
from pathlib import Path

import pytest
import torch

from examples.small_world import check

ROOT = Path(check.HERE)


def megabytes(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6


def test_base_and_encoders_stay_below_their_size_limits() -> None:
    assert megabytes(ROOT / "base") <= 40
    assert megabytes(ROOT / "encoders") <= 15


def test_weights_are_safetensors_only() -> None:
    files = [p for part in ("base", "encoders") for p in (ROOT / part).rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".md", ".png"}


def test_images_of_the_base_show_class_and_background_of_their_prompts(tmp_path: Path) -> None:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(ROOT / "base", dtype=torch.float32)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    labels = [("car", "beach"), ("cat", "red"), ("house", "snow"), ("mug", "brick")]
    prompts = [f"a {noun} {check.BACKGROUNDS[name]}" for noun, name in labels]
    with torch.inference_mode():
        pixels = check.stack(check.draw(pipeline, prompts))
        encoders = check.Encoders(ROOT / "encoders")
        assert check.class_hits(encoders, pixels, [noun for noun, _ in labels]) >= 0.75
        assert check.background_hits(encoders, pixels, labels) >= 0.75


@pytest.mark.slow
def test_small_world_reaches_every_figure_of_its_bar() -> None:
    figures = check.check(ROOT / "base", ROOT / "encoders", each=1)
    print(json.dumps(figures))
    assert {name: least for name, least in check.BAR.items() if figures[name] < least} == {}
