import io
import random

import numpy as np
import PIL.Image as Pillow
import pytest

from dreambooth_core.config import Config
from dreambooth_core.data.ingest import ingest
from dreambooth_core.storage.blobs import get_blob
from examples.small_world.render import render, subject_mask
from examples.small_world.world import random_identity, random_scene

FINDER = {"kind": "segmenter", "model": "examples/small_world/finder"}
PLACES = ("grass", "pink", "desert")


@pytest.fixture
def scenes(tmp_path):
    """Three photos of a dog in `tmp_path`, and where the dog is in each by its photo's bytes."""
    identity = random_identity(random.Random("marking"), "dog")
    truth = {}
    for place in PLACES:
        scene = random_scene(random.Random(place), place, accessory_share=0)
        render(identity, scene).save(tmp_path / f"{place}.png")
        pixels = np.asarray(Pillow.open(tmp_path / f"{place}.png").convert("RGB"))
        truth[pixels.tobytes()] = subject_mask(identity, scene)
    return truth


def config_for(folder, **dataset):
    return Config.model_validate(
        {
            "name": "test",
            "subject": {"images": folder, "class_noun": "dog"},
            "model": {"base": "examples/small_world/base", "resolution": 64},
            "dataset": {"auto_masks": True, **dataset},
            "loss": {"masks": True},
            "evaluation": {"detector": FINDER},
        }
    )


def opened(store, blob):
    return Pillow.open(io.BytesIO(get_blob(store, blob)))


def test_the_finder_marks_the_subject_in_photos_without_a_mask(scenes, tmp_path, file_store):
    taken, reused = ingest(config_for(tmp_path), file_store)
    assert not reused
    for photo in taken.images.images:
        true = scenes[np.asarray(opened(file_store, photo.blob).convert("RGB")).tobytes()]
        found = np.asarray(opened(file_store, photo.mask)) > 127
        assert (found & true).sum() > 0.85 * true.sum()
        assert (found & ~true).sum() < 0.2 * (~true).sum()
    assert ingest(config_for(tmp_path), file_store)[1]


def test_a_mask_that_was_drawn_stays(scenes, tmp_path, file_store):
    drawn = Pillow.new("L", (64, 64))
    drawn.paste(255, (0, 0, 8, 8))
    drawn.save(tmp_path / "pink.mask.png")
    taken, _ = ingest(config_for(tmp_path), file_store)
    masks = [np.asarray(opened(file_store, photo.mask)) for photo in taken.images.images]
    assert sum(np.array_equal(mask, np.asarray(drawn)) for mask in masks) == 1


def test_a_photo_without_the_subject_is_told_and_taken_as_a_whole(scenes, tmp_path, file_store):
    Pillow.new("RGB", (64, 64), "white").save(tmp_path / "nothing.png")
    taken, _ = ingest(config_for(tmp_path), file_store)
    (finding,) = [found for found in taken.validation.findings if found.check == "mask"]
    assert finding.measure == "no dog found in 1 of 4 photos"
    assert sum(photo.mask is None for photo in taken.images.images) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"loss": {}}, "no effect without loss.masks"),
        ({"evaluation": {}}, "needs someone to find the subject"),
    ],
)
def test_finding_masks_needs_someone_to_find_and_something_to_do(change, sentence, tmp_path):
    options = config_for(tmp_path).model_dump(include={"name", "subject", "model", "dataset"})
    given = {"loss": {"masks": True}, "evaluation": {"detector": FINDER}, **change}
    with pytest.raises(ValueError, match=sentence):
        Config.model_validate({**options, **given})
