"""The shipped finder on pictures that no training saw, and why crops are worth their name."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_core.vision.detectors import Detector, Region
from examples.small_world import check_finder, make_photos, train_finder
from examples.small_world.render import render_array, subject_mask
from examples.small_world.shapes import CLASSES
from examples.small_world.world import random_identity, random_scene

SHIPPED = check_finder.HERE / "finder"


@pytest.fixture(scope="module")
def finder() -> Detector:
    return check_finder.shipped(SHIPPED)


@pytest.mark.parametrize("class_noun", CLASSES)
def test_the_true_mask_is_where_the_subject_changes_the_picture(class_noun: str) -> None:
    """Against the same scene with the subject pushed out of it, on two colours: it may have one."""
    rng = random.Random(class_noun)
    identity, scene = random_identity(rng, class_noun), random_scene(rng, accessory_share=0)
    changed = np.zeros((64, 64), dtype=np.bool_)
    for background in ("green", "purple"):
        here = scene._replace(background=background)
        empty = render_array(identity, here._replace(x=9.0)).astype(int)
        changed |= np.abs(render_array(identity, here).astype(int) - empty).sum(-1) > 60
    mask = subject_mask(identity, scene)
    assert (mask & changed).sum() / (mask | changed).sum() > 0.85


def test_what_it_wears_is_not_the_subject() -> None:
    rng = random.Random(3)
    identity, scene = random_identity(rng, "dog"), random_scene(rng, "white")
    bare = subject_mask(identity, scene._replace(accessory=None))
    dressed = subject_mask(identity, scene._replace(accessory="hat"))
    assert (bare & ~dressed).any()
    assert not (dressed & ~bare).any()


def test_the_finder_is_small_and_nothing_but_numbers() -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < 1_000_000


def test_the_subject_is_found_in_fresh_renders(finder: Detector) -> None:
    figures = check_finder.overlap(finder, count=40)
    assert figures["found"] == 1
    assert figures["mask"] > 0.75
    assert figures["box"] > 0.75


def test_the_demos_photos_are_found_whatever_the_noun(finder: Detector) -> None:
    photos = sorted((Path(make_photos.HERE) / "photos").rglob("*.png"))
    found = finder.find([Image.open(photo) for photo in photos], "dog")
    assert all(spot is not None for spot in found)


def test_an_empty_place_has_no_subject(finder: Detector) -> None:
    assert finder.find([Image.new("RGB", (64, 64), (98, 160, 72))], "dog") == [None]


def test_training_is_the_same_twice_and_saves_what_the_core_loads(tmp_path: Path) -> None:
    marked = train_finder.rendered("test", 10)
    recipe = train_finder.FINDER._replace(steps=2, batch=4)
    weights = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        torch.manual_seed(2)
        model, facts = train_finder.train_finder(marked, recipe, tmp_path / name)
        train_finder.save(model, tmp_path / name / "out", facts)
        weights.append((tmp_path / name / "out" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    (found,) = check_finder.shipped(tmp_path / "first" / "out").find(
        [Image.fromarray(marked.images[0])], "dog"
    )
    assert found is None or isinstance(found, Region)


@pytest.mark.slow
def test_an_impostor_on_the_same_background_fools_whole_pictures_more_than_crops(
    finder: Detector,
) -> None:
    """NearID's test in the small world; half a minute on an idle core."""
    from dreambooth_core.vision.encoders import ImageEncoder

    clip = ImageEncoder(str(check_finder.HERE / "encoders" / "clip"), None)
    told = check_finder.told_apart(finder, clip, "clip", count=120)
    print(told)
    assert told.crops > told.whole + 0.05
    assert told.p < 0.01
