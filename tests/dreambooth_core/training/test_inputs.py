"""What a training lives on: gathered from caches, without the models that filled them."""

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
    for place, subject in enumerate(subjects):
        file = io.BytesIO()
        Pillow.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        blob = put_blob(store, file.getvalue())
        members.append(Image(name=f"{place}.png", blob=blob, size=(32, 32), subject=subject))
    return image_set(store, "datasets/test", members)


def _gather(config: Config, subjects: tuple[int, ...] = (0, 0, 0)) -> inputs.TrainingInputs:
    store = open_store(config.storage)
    photos = _photos(store, subjects)
    place = inputs.TrainingContext(Path(config.model.base), store, torch.device("cpu"))
    planned = class_images(config, photos)
    return inputs.prepare_inputs(config, FAMILY, place, (photos, planned), moving_text=False)


def _alive(*names: str) -> int:
    gc.collect()
    return sum(type(thing).__name__ in names for thing in gc.get_objects())


def test_the_frozen_encoders_are_gone_when_the_steps_begin(tiny_base: Path, tmp_path: Path) -> None:
    before = _alive("AutoencoderKL", "CLIPTextModel")
    found = _gather(_config(tiny_base, tmp_path))
    assert found.conditioning is not None
    assert found.conditioning["hidden_states"].shape[0] == len(found.prompts)
    assert found.steps[0]["latents"].shape == (1, 4, 16, 16)
    assert _alive("AutoencoderKL", "CLIPTextModel") == before


def test_each_subjects_last_photos_are_only_looked_at(tiny_base: Path, tmp_path: Path) -> None:
    others = [{"images": "photos", "class_noun": "cat", "identifier": "zwx"}]
    choosing = {"every_n_steps": 2, "held_out_photos": 1, "noise_draws": 3}
    config = _config(tiny_base, tmp_path, choosing=choosing, more_subjects=others)
    found = _gather(config, (0, 0, 0, 1, 1))
    assert found.steps.photos.subjects == (0, 0, 1)
    assert found.stable.photos.subjects == (0, 1)
    assert len(found.stable) == 2 * 3
    seen = {float(found.steps.photos.source.get(i, 0).latents.mean.sum()) for i in range(3)}
    held = {float(found.stable.photos.source.get(i, 0).latents.mean.sum()) for i in range(2)}
    assert not seen & held


def test_the_stable_loss_is_over_the_photos_where_none_are_held_out(
    tiny_base: Path, tmp_path: Path
) -> None:
    found = _gather(_config(tiny_base, tmp_path, validation={"every_n_steps": 2}))
    assert found.stable.photos == found.steps.photos
    first, again = found.stable[5], found.stable[5]
    assert torch.equal(first["noise"], again["noise"])
    assert not torch.equal(first["noise"], found.steps[5]["noise"])


def test_photos_must_be_left_to_train_on(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="leaves none of the 3 photos"):
        _gather(_config(tiny_base, tmp_path, validation={"every_n_steps": 2, "held_out_photos": 3}))


def test_class_images_that_nobody_made_are_said(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="is missing: run again"):
        _gather(_config(tiny_base, tmp_path, prior={"target": "images", "num_class_images": 2}))
