"""Mixes of models: what can be loaded into one base, and what cannot."""

import shutil
from pathlib import Path

import pytest

from dreambooth_core.batch_sampling.job import SamplingJob
from dreambooth_core.batch_sampling.models import instance_images, model_mixes
from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError
from dreambooth_core.registry.resolve import find_models
from tests.orders_for_real import SampledModels


def _job(*mixes: str) -> SamplingJob:
    return SamplingJob.model_validate({"name": "x", "models": mixes, "prompts": "a"})


def test_registered_versions_are_mixed_by_name_alias_and_number(tracked_config: Config):
    sampled = SampledModels(tracked_config)
    weights = sampled.register("dog")
    job = _job("dog", "dog@candidate:0.5", "dog/1")
    models = find_models(job.models, None, tracked_config.paths.work)
    mixes = model_mixes(job, models, sampled.store)
    assert mixes["dog@candidate:0.5"].name == "dog/1:0.5"
    assert mixes["dog@candidate:0.5"].weights == ((weights, 0.5),)
    assert mixes["dog"] == mixes["dog/1"]
    photos = instance_images(sampled.store, models["dog"])
    assert photos is not None
    assert photos.count == 1


def test_a_config_without_a_finished_training_is_refused(tiny_config: Config, tmp_path: Path):
    path = tmp_path / "dog.yaml"
    path.write_text(tiny_config.model_dump_json())
    models = find_models([str(path)], None, tiny_config.paths.work)
    with pytest.raises(ConfigError, match="tiny was not trained with this config"):
        model_mixes(_job(str(path)), models, SampledModels(tiny_config).store)


def test_mixes_are_named_by_version_and_strength(tiny_config: Config):
    sampled = SampledModels(tiny_config)
    sampled.add("dog")
    job = _job("dog:0.5", "dog:0.50000001", "dog:2.0")
    mixes = model_mixes(job, sampled.models, sampled.store).values()
    assert {mix.name for mix in mixes} == {"dog/1:0.5", "dog/1:0.50000001", "dog/1:2"}


def test_new_tokens_of_one_identifier_do_not_mix(tiny_config: Config):
    sampled = SampledModels(tiny_config)
    sampled.add("dog", "pivotal")
    sampled.add("cat", "pivotal")
    sampled.add("hat", "pivotal", identifier="zwx")
    assert len(model_mixes(_job("dog + hat"), sampled.models, sampled.store)) == 1
    with pytest.raises(ConfigError, match="add new tokens for 'sks': they cannot mix"):
        model_mixes(_job("dog + cat"), sampled.models, sampled.store)


def test_bases_do_not_mix(tiny_config: Config, tmp_path: Path):
    sampled = SampledModels(tiny_config)
    sampled.add("dog")
    other = tmp_path / "other"
    shutil.copytree(tiny_config.model.base, other)
    (other / "README.md").write_text("another one")
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("{", '{"steps_offset": 1,', 1))
    moved = tiny_config.model.model_copy(update={"base": str(other)})
    sampled.config = tiny_config.model_copy(update={"model": moved})
    sampled.add("hat")
    with pytest.raises(ConfigError, match="were trained on different bases: they cannot mix"):
        sampled.plan(sampled.job(models="dog + hat"))
