"""Repeats and unsafe images, in constructed cases with known answers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from dreambooth_core.batch_sampling import image_checks
from dreambooth_core.errors import ModelError


def _blots(seed: int, side: int = 64) -> Pillow.Image:
    draw = np.random.default_rng(seed)
    small = Pillow.fromarray(draw.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    return small.resize((side, side), Pillow.Resampling.BICUBIC)


def test_a_brighter_smaller_jpeg_of_an_image_repeats_it(tmp_path: Path):
    image = _blots(0)
    image.resize((48, 48)).point(lambda value: min(255, value + 20)).save(tmp_path / "a.jpg")
    images = [_blots(1), image, _blots(2), Pillow.open(tmp_path / "a.jpg")]
    hashes = np.stack([image_checks.packed_hash(one) for one in images])
    assert image_checks.repeats_by_hash(hashes, 8) == (None, None, None, 1)


def test_the_hash_is_the_rises_of_brightness():
    ramp = np.tile(np.arange(0, 90, 10, dtype=np.uint8), (8, 1))
    rising, falling = (Pillow.fromarray(grey) for grey in (ramp, ramp[:, ::-1].copy()))
    assert image_checks.packed_hash(rising).tolist() == [255] * 8
    assert image_checks.packed_hash(falling).tolist() == [0] * 8
    half = np.vstack([ramp[:4], ramp[4:, ::-1]])
    assert image_checks.packed_hash(Pillow.fromarray(half)).tolist() == [255] * 4 + [0] * 4


def test_repeats_go_back_to_the_first_within_the_distance():
    hashes = np.array([[0], [0b11], [0b1], [0b11110000]], dtype=np.uint8)
    assert image_checks.repeats_by_hash(hashes, 0) == (None, None, None, None)
    assert image_checks.repeats_by_hash(hashes, 1) == (None, None, 0, None)
    assert image_checks.repeats_by_hash(hashes, 2) == (None, 0, 0, None)


def test_repeats_by_cosine_over_several_blocks():
    count = image_checks.ROWS + 40
    angles = np.linspace(0, np.pi, count)
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rows[-1] = rows[7]
    found = image_checks.repeats_by_cosine(rows, 1 - 1e-9)
    assert found[-1] == 7
    assert set(found[:-1]) == {None}


@pytest.fixture
def checker(tmp_path: Path) -> Path:
    """A tiny safety checker with random weights, for which one image is a concept of its list."""
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessorPil

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    vision = {**small, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = StableDiffusionSafetyChecker(
            CLIPConfig(vision_config=vision, text_config=small, projection_dim=8)
        ).eval()
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    pixels = processor(images=[_blots(2)], return_tensors="pt").pixel_values
    with torch.no_grad():
        concept = model.visual_projection(model.vision_model(pixels)[1])[0]
        model.concept_embeds[:] = concept
        model.special_care_embeds[:] = -concept
        model.concept_embeds_weights[:] = 0.999
    model.save_pretrained(tmp_path / "checker")
    processor.save_pretrained(tmp_path / "checker")
    return tmp_path / "checker"


def test_the_safety_checker_is_asked_and_changes_nothing(checker: Path):
    images = [_blots(seed) for seed in range(12)]
    before = [image.tobytes() for image in images]
    found = image_checks.unsafe(images, str(checker), None)
    assert [place for place, bad in enumerate(found) if bad] == [2]
    assert [image.tobytes() for image in images] == before


def test_a_missing_safety_checker_is_said(tmp_path: Path):
    with pytest.raises(ModelError, match="no safety checker at"):
        image_checks.unsafe([_blots(0)], str(tmp_path), None)
