"""Tests of training inputs: read from caches, without the models that filled them."""

import gc
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from dreambooth_core.config import Config
from dreambooth_core.diffusion.families import load_family
from dreambooth_core.errors import StageFailed
from dreambooth_core.storage.blobs import image_set, put_blob
from dreambooth_core.storage.records import Image, ImageSet
from dreambooth_core.storage.stores import Store, open_store
from dreambooth_core.training import inputs
from dreambooth_core.training.class_images import class_images

FAMILY = load_family("stable_diffusion")


def _config(base: Path, work: Path, **sections: Any) -> Config:
    return Config.model_validate(
        {
            "name": "test",
            "subject": {"images": "photos", "class_noun": "dog"},
            "model": {"base": str(base), "resolution": 32},
            "prior": {"enabled": False},
            "storage": {"uri": f"file://{work / 'store'}", "endpoint": None},
            "paths": {"work": work},
            **sections,
        }
    )


def _photos(store: Store, subjects: tuple[int, ...]) -> ImageSet:
    draws, members = np.random.default_rng(0), []
    for index, subject in enumerate(subjects):
        file = io.BytesIO()
        Pillow.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        blob = put_blob(store, file.getvalue())
        members.append(Image(name=f"{index}.png", blob=blob, size=(32, 32), subject=subject))
    return image_set(store, "datasets/test", members)


def _prepare(config: Config, subjects: tuple[int, ...] = (0, 0, 0)) -> inputs.TrainingInputs:
    store = open_store(config.storage)
    photos = _photos(store, subjects)
    context = inputs.TrainingContext(Path(config.model.base), store, torch.device("cpu"))
    planned = class_images(config, photos)
    return inputs.prepare_inputs(config, FAMILY, context, photos, planned, trains_text=False)


def _count_live(*names: str) -> int:
    gc.collect()
    return sum(type(thing).__name__ in names for thing in gc.get_objects())


def test_frozen_encoders_are_freed_before_the_first_step(tiny_base: Path, tmp_path: Path) -> None:
    before = _count_live("AutoencoderKL", "CLIPTextModel")
    found = _prepare(_config(tiny_base, tmp_path))
    assert found.conditioning is not None
    assert found.conditioning["hidden_states"].shape[0] == len(found.prompts)
    assert found.train_batches[0]["latents"].shape == (1, 4, 16, 16)
    assert _count_live("AutoencoderKL", "CLIPTextModel") == before


def test_each_subjects_last_photos_are_held_out(tiny_base: Path, tmp_path: Path) -> None:
    others = [{"images": "photos", "class_noun": "cat", "identifier": "zwx"}]
    rules = {"every_n_steps": 2, "held_out_photos": 1, "noise_draws": 3}
    config = _config(tiny_base, tmp_path, validation=rules, more_subjects=others)
    found = _prepare(config, (0, 0, 0, 1, 1))
    assert found.train_batches.photos.subjects == (0, 0, 1)
    assert found.validation_batches.photos.subjects == (0, 1)
    assert len(found.validation_batches) == 2 * 3
    trained = {
        float(found.train_batches.photos.source.get(i, 0).latents.mean.sum()) for i in range(3)
    }
    held = {
        float(found.validation_batches.photos.source.get(i, 0).latents.mean.sum()) for i in range(2)
    }
    assert not trained & held


def test_without_held_out_photos_validation_uses_all(tiny_base: Path, tmp_path: Path) -> None:
    found = _prepare(_config(tiny_base, tmp_path, validation={"every_n_steps": 2}))
    assert found.validation_batches.photos == found.train_batches.photos
    first, again = found.validation_batches[5], found.validation_batches[5]
    assert torch.equal(first["noise"], again["noise"])
    assert not torch.equal(first["noise"], found.train_batches[5]["noise"])


def test_holding_out_all_photos_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="leaves none of the 3 photos"):
        _prepare(
            _config(tiny_base, tmp_path, validation={"every_n_steps": 2, "held_out_photos": 3})
        )


def test_missing_class_images_are_reported(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="is missing: run again"):
        _prepare(_config(tiny_base, tmp_path, prior={"target": "images", "num_class_images": 2}))
