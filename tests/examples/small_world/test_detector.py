"""The shipped detector on held-out renders, and identity accuracy on its crops."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_core.vision.detectors import Detector, Region
from examples.small_world import check_detector, make_photos, train_detector
from examples.small_world.render import render_array, subject_mask
from examples.small_world.shapes import CLASSES
from examples.small_world.world import random_identity, random_scene

SHIPPED = check_detector.HERE / "detector"


@pytest.fixture(scope="module")
def detector() -> Detector:
    return check_detector.shipped(SHIPPED)


@pytest.mark.parametrize("class_noun", CLASSES)
def test_true_mask_is_the_pixels_that_the_subject_changes(class_noun: str) -> None:
    """Compared with the scene without the subject, on two backgrounds: it may have the colour of one."""
    rng = random.Random(class_noun)
    identity, scene = random_identity(rng, class_noun), random_scene(rng, accessory_share=0)
    changed = np.zeros((64, 64), dtype=np.bool_)
    for background in ("green", "purple"):
        shown = scene._replace(background=background)
        empty = render_array(identity, shown._replace(x=9.0)).astype(int)
        changed |= np.abs(render_array(identity, shown).astype(int) - empty).sum(-1) > 60
    mask = subject_mask(identity, scene)
    assert (mask & changed).sum() / (mask | changed).sum() > 0.85


def test_accessory_is_not_in_the_subjects_mask() -> None:
    rng = random.Random(3)
    identity, scene = random_identity(rng, "dog"), random_scene(rng, "white")
    bare = subject_mask(identity, scene._replace(accessory=None))
    dressed = subject_mask(identity, scene._replace(accessory="hat"))
    assert (bare & ~dressed).any()
    assert not (dressed & ~bare).any()


def test_detector_is_small_and_has_only_json_and_safetensors() -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < 1_000_000


def test_subject_is_detected_in_held_out_renders(detector: Detector) -> None:
    figures = check_detector.overlap(detector, count=40)
    assert figures["found"] == 1
    assert figures["mask"] > 0.75
    assert figures["box"] > 0.75


def test_subject_is_detected_in_all_demo_photos_with_any_noun(detector: Detector) -> None:
    photos = sorted((Path(make_photos.HERE) / "photos").rglob("*.png"))
    found = detector.find([Image.open(photo) for photo in photos], "dog")
    assert all(region is not None for region in found)


def test_no_subject_is_detected_in_a_plain_image(detector: Detector) -> None:
    assert detector.find([Image.new("RGB", (64, 64), (98, 160, 72))], "dog") == [None]


def test_training_is_deterministic_and_its_weights_can_be_loaded(tmp_path: Path) -> None:
    data = train_detector.render_masked("test", 10)
    recipe = train_detector.DETECTOR._replace(steps=2, batch=4)
    weights = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        torch.manual_seed(2)
        model, facts = train_detector.train_detector(data, recipe, tmp_path / name)
        train_detector.save(model, tmp_path / name / "out", facts)
        weights.append((tmp_path / name / "out" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    (found,) = check_detector.shipped(tmp_path / "first" / "out").find(
        [Image.fromarray(data.images[0])], "dog"
    )
    assert found is None or isinstance(found, Region)


@pytest.mark.slow
def test_clip_identifies_the_subject_better_on_crops_than_on_whole_images(
    detector: Detector,
) -> None:
    """The triplet test of NearID on the small world; half a minute on an idle core."""
    from dreambooth_core.vision.encoders import ImageEncoder

    clip = ImageEncoder(str(check_detector.HERE / "encoders" / "clip"), None)
    accuracy = check_detector.triplet_accuracy(detector, clip, "clip", count=120)
    print(accuracy)
    assert accuracy.crops > accuracy.whole + 0.05
    assert accuracy.p < 0.01
