"""Stage `validate`: cached by files and rules, refused for missing masks."""

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.config import Config
from dreambooth_core.data.ingest import ingest
from dreambooth_core.errors import ConfigError


@pytest.fixture
def config(tmp_path):
    """Three small photos, and a masked loss."""
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


def test_a_masked_loss_needs_a_mask(config, file_store):
    with pytest.raises(ConfigError, match=r"loss\.masks.*\.mask\.png"):
        ingest(config, file_store)
    plain = config.model_copy(update={"loss": config.loss.model_copy(update={"masks": False})})
    assert ingest(plain, file_store)[0].images.count == 3
    with pytest.raises(ConfigError, match=r"loss\.masks"):  # also for a cached set
        ingest(config, file_store)
    Image.new("L", (64, 64), 255).save(config.subject.images / "0.mask.png")
    ingested, reused = ingest(config, file_store)
    assert not reused
    assert sum(image.mask is not None for image in ingested.images.images) == 1
    assert ingest(config, file_store) == (ingested, True)


def test_captions_are_part_of_the_stages_key(config, file_store):
    plain = config.model_copy(update={"loss": config.loss.model_copy(update={"masks": False})})
    ingest(plain, file_store)
    (config.subject.images / "0.txt").write_text("{subject} at sea")
    ingested, reused = ingest(plain, file_store)
    assert not reused
    assert [image.prompt for image in ingested.images.images if image.prompt] == [
        "sks robot at sea"
    ]
    other = plain.model_copy(
        update={"subject": plain.subject.model_copy(update={"class_noun": "toy"})}
    )
    again, reused = ingest(other, file_store)
    assert not reused
    assert "sks toy at sea" in {image.prompt for image in again.images.images}


def test_captions_can_be_ignored(config, file_store):
    (config.subject.images / "0.txt").write_text("{subject} at sea")
    changed = {
        "loss": {"masks": False},
        "subject": {**config.subject.model_dump(), "captions": False},
    }
    plain = Config.model_validate({**config.model_dump(), **changed})
    ingested, _ = ingest(plain, file_store)
    assert {image.prompt for image in ingested.images.images} == {""}
    assert [found.check for found in ingested.validation.findings] == ["too few"]
