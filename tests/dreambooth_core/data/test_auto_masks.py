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

DETECTOR = {"kind": "segmenter", "model": "examples/small_world/detector"}
BACKGROUNDS = ("grass", "pink", "desert")


@pytest.fixture
def scenes(tmp_path):
    """Three photos of a dog in `tmp_path`; returns pixels -> true mask."""
    identity = random_identity(random.Random("marking"), "dog")
    truth = {}
    for background in BACKGROUNDS:
        scene = random_scene(random.Random(background), background, accessory_share=0)
        render(identity, scene).save(tmp_path / f"{background}.png")
        pixels = np.asarray(Pillow.open(tmp_path / f"{background}.png").convert("RGB"))
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
            "evaluation": {"detector": DETECTOR},
        }
    )


def opened(store, blob):
    return Pillow.open(io.BytesIO(get_blob(store, blob)))


def test_photos_without_a_mask_get_a_detected_one(scenes, tmp_path, file_store):
    ingested, reused = ingest(config_for(tmp_path), file_store)
    assert not reused
    for photo in ingested.images.images:
        true = scenes[np.asarray(opened(file_store, photo.blob).convert("RGB")).tobytes()]
        found = np.asarray(opened(file_store, photo.mask)) > 127
        assert (found & true).sum() > 0.85 * true.sum()
        assert (found & ~true).sum() < 0.2 * (~true).sum()
    assert ingest(config_for(tmp_path), file_store)[1]


def test_an_existing_mask_is_kept(scenes, tmp_path, file_store):
    drawn = Pillow.new("L", (64, 64))
    drawn.paste(255, (0, 0, 8, 8))
    drawn.save(tmp_path / "pink.mask.png")
    ingested, _ = ingest(config_for(tmp_path), file_store)
    masks = [np.asarray(opened(file_store, photo.mask)) for photo in ingested.images.images]
    assert sum(np.array_equal(mask, np.asarray(drawn)) for mask in masks) == 1


def test_a_photo_without_the_subject_gives_a_finding_and_no_mask(scenes, tmp_path, file_store):
    Pillow.new("RGB", (64, 64), "white").save(tmp_path / "nothing.png")
    ingested, _ = ingest(config_for(tmp_path), file_store)
    (finding,) = [found for found in ingested.validation.findings if found.check == "mask"]
    assert finding.measure == "no dog found in 1 of 4 photos"
    assert sum(photo.mask is None for photo in ingested.images.images) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"loss": {}}, "no effect without loss.masks"),
        ({"evaluation": {}}, "needs a detector"),
    ],
)
def test_auto_masks_need_a_detector_and_a_masked_loss(change, sentence, tmp_path):
    options = config_for(tmp_path).model_dump(include={"name", "subject", "model", "dataset"})
    given = {"loss": {"masks": True}, "evaluation": {"detector": DETECTOR}, **change}
    with pytest.raises(ValueError, match=sentence):
        Config.model_validate({**options, **given})
