"""The first stage: taken in once for the same files, and refused where masks are missing."""

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.config import Config
from dreambooth_core.data.ingest import ingest
from dreambooth_core.errors import ConfigError


@pytest.fixture
def config(tmp_path):
    """Three small photos, and a loss that looks at masks."""
    folder = tmp_path / "photos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for index in range(3):
        blots = Image.fromarray(draw.integers(0, 255, (6, 6, 3), dtype=np.uint8))
        blots.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    subject = {"images": folder, "class_noun": "robot"}
    return Config.model_validate(
        {"name": "r", "subject": subject, "model": {"resolution": 64}, "loss": {"masks": True}}
    )


def test_masks_that_are_asked_for_must_be_there(config, file_store):
    with pytest.raises(ConfigError, match=r"loss\.masks.*\.mask\.png"):
        ingest(config, file_store)
    plain = config.model_copy(update={"loss": config.loss.model_copy(update={"masks": False})})
    assert ingest(plain, file_store)[0].images.count == 3
    with pytest.raises(ConfigError, match=r"loss\.masks"):  # also of a set that was taken in before
        ingest(config, file_store)
    Image.new("L", (64, 64), 255).save(config.subject.images / "0.mask.png")
    taken, reused = ingest(config, file_store)
    assert not reused
    assert sum(image.mask is not None for image in taken.images.images) == 1
    assert ingest(config, file_store) == (taken, True)


def test_captions_are_part_of_what_is_taken_in(config, file_store):
    plain = config.model_copy(update={"loss": config.loss.model_copy(update={"masks": False})})
    ingest(plain, file_store)
    (config.subject.images / "0.txt").write_text("{subject} at sea")
    taken, reused = ingest(plain, file_store)
    assert not reused
    assert [image.prompt for image in taken.images.images if image.prompt] == ["sks robot at sea"]
    other = plain.model_copy(
        update={"subject": plain.subject.model_copy(update={"class_noun": "toy"})}
    )
    again, reused = ingest(other, file_store)
    assert not reused
    assert "sks toy at sea" in {image.prompt for image in again.images.images}


def test_captions_can_be_left_aside(config, file_store):
    (config.subject.images / "0.txt").write_text("{subject} at sea")
    changed = {
        "loss": {"masks": False},
        "subject": {**config.subject.model_dump(), "captions": False},
    }
    plain = Config.model_validate({**config.model_dump(), **changed})
    taken, _ = ingest(plain, file_store)
    assert {image.prompt for image in taken.images.images} == {""}
    assert [found.check for found in taken.validation.findings] == ["too few"]
