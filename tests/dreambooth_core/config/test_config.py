"""Conflicting options, defaults that depend on other options, and recipes."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dreambooth_core.config import Config, Subject, load_config
from dreambooth_core.config.loading import wrong_fields
from dreambooth_core.diffusion import families
from dreambooth_core.diffusion.families import load_family
from dreambooth_core.errors import ConfigError

SUBJECT = {"images": "photos", "class_noun": "dog"}
FULL = {"method": "full"}
LORA = {"method": "lora"}
FREE = {"name": "schedule_free"}
FUSED = {"fused_backward": True}
UNCLIPPED = {"max_grad_norm": None}
SHARDS = {"strategy": "fsdp2", "num_processes": 2, "batch_size": 2}


def _config(**sections: Any) -> Config:
    return Config.model_validate({"name": "test", "subject": SUBJECT, **sections})


def test_wildcards() -> None:
    subject = Subject(images=Path(), class_noun="dog")
    assert subject.fill("{subject}|{identifier}|{class}|{class_noun}") == "sks dog|sks|dog|dog"
    for template in ("a {colour} dog", "{subject.images}", "{0}", "{}"):
        with pytest.raises(ValueError, match=r"may only hold {subject}, {identifier}, {class}, "):
            subject.fill(template)
    with pytest.raises(ValueError, match="a brace that does not close"):
        subject.fill("a {subject")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"prior": {"target": "prediction"}, "train": FULL}, "needs an adapter, which"),
        ({"train": {"method": "textual_inversion"}}, "prior.enabled: false"),
        ({"prior": {"num_class_images": 200}}, "prior.num_class_images 200 has no effect"),
        (
            {"prior": {"generate_in_background": True}},
            "prior.generate_in_background needs class images",
        ),
        (
            {
                "train": {"method": "textual_inversion", "text_encoder": True},
                "prior": {"enabled": False},
            },
            "which textual_inversion freezes",
        ),
        (
            {"prior": {"generate_in_background": True, "target": "prediction"}, "train": LORA},
            "needs class images",
        ),
        ({"model": {"quantize": "nf4"}, "train": FULL}, "which train.method full trains"),
        ({"model": {"quantize": "int8"}, "train": {"method": "lokr"}}, "lokr does not support"),
        ({"optimizer": FUSED}, "train.max_grad_norm: null"),
        (
            {"optimizer": FUSED, "train": {**UNCLIPPED, "gradient_accumulation_steps": 2}},
            "gradient_accumulation_steps: 1",
        ),
        ({"optimizer": FUSED, "train": {**UNCLIPPED, "precision": "fp16"}}, "fp16"),
        (
            {"optimizer": FUSED, "train": {**UNCLIPPED, "text_encoder_until": 0.5}},
            "train.text_encoder_until",
        ),
        ({"optimizer": {"name": "prodigy"}}, "set train.learning_rate: 1"),
        ({"optimizer": FREE, "train": {"ema": 0.9}}, "averages by itself"),
        ({"optimizer": FREE, "train": {"lr_schedule": "cosine"}}, "averages by itself"),
        (
            {"train": {"text_encoder": False, "text_encoder_learning_rate": 1e-5}},
            "no effect with train.text_encoder: false",
        ),
        (
            {"train": {"text_encoder": False, "text_encoder_until": 0.5}},
            "no effect with train.text_encoder: false",
        ),
        ({"train": {"strategy": "fsdp2"}}, "at least 2"),
        ({"train": SHARDS, "validation": {"every_n_steps": 5}}, "needs a whole model per rank"),
        ({"train": {**SHARDS, "precision": "fp16"}}, "no loss scaling"),
        ({"train": {**SHARDS, "method": "lora"}, "model": {"quantize": "int8"}}, "cannot shard"),
        ({"train": {"batch_size": 3, "num_processes": 2}}, "make it a multiple"),
        ({"train": {"steps": 5, "lr_warmup_steps": 5}}, "below train.steps"),
        ({"validation": {"early_stopping_patience": 3}}, "without validation.every_n_steps"),
        ({"loss": {"min_snr_gamma": 3}}, "without loss.weighting: min_snr"),
        ({"loss": {"huber_c": 0.5}}, "without loss.kind: huber"),
        ({"loss": {"logit_mean": 1}}, "without loss.timestep_sampling: logit_normal"),
        ({"loss": {"unmasked_weight": 0.5}}, "without loss.masks"),
        ({"more_subjects": [SUBJECT]}, "have the same identifier"),
        ({"compute": {"engine": "dask"}}, "choose from: local, ray"),
        ({"compute": {"engine": "ray"}}, "a store that every machine reaches"),
    ],
)
def test_conflicting_options_are_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        _config(**sections)


@pytest.mark.parametrize(
    ("family", "sections", "words"),
    [
        ("z_image", {"train": {"text_encoder": True}}, "has no trainable text encoder"),
        ("z_image", {"train": {"method": "pivotal"}}, "learn new tokens"),
        ("flux", {"loss": {"weighting": "min_snr"}}, "trained by flow matching"),
        ("flux", {"model": {"family": "flux", "resolution": 520}}, "multiple of 16"),
        ("flux", {"dataset": {"buckets": True, "bucket_step": 8}}, "dataset.bucket_step 8"),
        ("flux2", {"sampler": {"negative_prompt": "ugly"}}, "negative"),
    ],
)
def test_options_that_a_family_lacks_are_refused(
    family: str, sections: dict[str, Any], words: str
) -> None:
    config = _config(**{"model": {"family": family}, **sections})
    with pytest.raises(ConfigError, match=words):
        families.check(load_family(family), config)


def test_a_written_config_is_read_back_with_its_defaults() -> None:
    config = _config(
        train=LORA, validation={"every_n_steps": 10}, loss={"timestep_sampling": "mode"}
    )
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert Config.model_validate_json(_config().model_dump_json()) == _config()


@pytest.mark.parametrize(
    ("images", "name"),
    [
        ("photos/my dog", "my-dog"),
        ("dataset://robot@latest", "robot"),
        ("/photos/_x_/", "x"),
        ("photos/\u72ac", "dog"),
        ("..", "dog"),
    ],
)
def test_the_default_name_is_that_of_the_photos(images: str, name: str) -> None:
    subject = {**SUBJECT, "images": images}
    assert Config.model_validate({"subject": subject}).name == name
    assert _config(subject=subject).name == "test"


@pytest.mark.parametrize(("method", "rate"), [(None, 1e-4), ("dora", 1e-4), ("full", 5e-6)])
def test_the_default_learning_rate_depends_on_the_method(method: str | None, rate: float) -> None:
    train = {} if method is None else {"method": method}
    assert _config(train=train).train.learning_rate == rate
    assert _config(train={**train, "learning_rate": 0.5}).train.learning_rate == 0.5


@pytest.mark.parametrize(
    ("sections", "target"),
    [
        ({}, "prediction"),
        ({"train": FULL}, "images"),
        ({"prior": {"target": "images"}}, "images"),
        ({"prior": {"enabled": False}}, None),
    ],
)
def test_the_default_prior_target_depends_on_the_method(
    sections: dict[str, Any], target: str | None
) -> None:
    assert _config(**sections).prior_target == target


def test_missing_photos_are_reported_without_the_derived_name() -> None:
    with pytest.raises(ValidationError) as refused:
        Config.model_validate({"subject": {"class_noun": "dog"}})
    assert wrong_fields(refused.value) == "subject.images: is missing: set it"


def test_a_recipe_is_overridden_by_config_and_set(tmp_path: Path) -> None:
    file = tmp_path / "dog.yaml"
    file.write_text("subject: {images: photos, class_noun: dog}\ntrain: {steps: 7}\n")
    config = load_config(file, ("adapter.rank=2",), recipe="sdxl-lora")
    assert (config.model.family, config.train.steps) == ("sdxl", 7)
    assert (config.adapter.rank, config.adapter.alpha) == (2, 4)


def test_an_unknown_recipe_proposes_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "dog.yaml"
    file.write_text("subject: {images: photos, class_noun: dog}\n")
    with pytest.raises(ConfigError, match="did you mean sdxl-lora"):
        load_config(file, recipe="sdxl-lroa")


def test_a_copy_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match="Train has no field accumulate"):
        _config().train.model_copy(update={"accumulate": 2})
