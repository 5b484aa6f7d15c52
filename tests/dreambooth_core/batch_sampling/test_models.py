"""The words of an order for models: registered versions, finished trainings, and what is neither."""

from pathlib import Path

import pytest

from dreambooth_core.batch_sampling import models as palettes
from dreambooth_core.batch_sampling.job import SamplingJob
from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError
from tests.orders_for_real import Ordered


def _order(*models: str) -> SamplingJob:
    return SamplingJob.model_validate({"name": "x", "models": models, "prompts": "a"})


def test_registered_versions_are_found_by_name_alias_and_number(tracked_config: Config):
    shop = Ordered(tracked_config)
    weights = shop.register("dog")
    order = _order("dog", "dog@candidate:0.5", "dog/1")
    members = palettes.find_members(order, None, tracked_config.paths.work)
    assert {member.name for member in members.values()} == {"dog/1"}
    mixes = palettes.model_mixes(order, members, shop.store)
    assert mixes["dog@candidate:0.5"].name == "dog/1:0.5"
    assert mixes["dog@candidate:0.5"].blend == ((weights, 0.5),)
    assert mixes["dog"] == mixes["dog/1"]
    photos = palettes.photos_of(shop.store, members["dog"])
    assert photos is not None
    assert photos.count == 1
    for word in ("cat", "dog/9", "dog@nobody"):
        with pytest.raises(ConfigError, match=f"no registered model {word}: use NAME"):
            palettes.find_members(_order(word), None, tracked_config.paths.work)


def test_a_config_stands_for_its_finished_training(tiny_config: Config, tmp_path: Path):
    path = tmp_path / "dog.yaml"
    path.write_text(tiny_config.model_dump_json())
    members = palettes.find_members(_order(str(path)), None, tiny_config.paths.work)
    assert members[str(path)].name == "tiny"
    with pytest.raises(ConfigError, match="tiny was not trained with this config"):
        palettes.model_mixes(_order(str(path)), members, Ordered(tiny_config).store)


def test_two_models_of_one_name_are_told_apart(tiny_config: Config, tmp_path: Path):
    """Or one would draw what the other one is asked for, into the other one's place."""
    paths = [str(tmp_path / f"{name}.yaml") for name in ("here", "there")]
    for path in paths:
        Path(path).write_text(tiny_config.model_dump_json())
    members = palettes.find_members(_order(*paths), None, tiny_config.paths.work)
    assert [members[path].name for path in paths] == [f"tiny ({path})" for path in paths]
    shop = Ordered(tiny_config)
    shop.add("dog")
    order = _order("dog:0.5", "dog:0.50000001", "dog:2.0")
    mixes = palettes.model_mixes(order, shop.members, shop.store).values()
    assert {mix.name for mix in mixes} == {"dog/1:0.5", "dog/1:0.50000001", "dog/1:2"}


def test_models_of_two_stores_are_two_orders(tiny_config: Config, tmp_path: Path):
    paths = [tmp_path / f"{name}.yaml" for name in ("here", "there")]
    for path in paths:
        storage = {"uri": f"file://{tmp_path / path.stem}", "endpoint": None}
        document = {**tiny_config.model_dump(mode="json"), "storage": storage, "name": path.stem}
        path.write_text(Config.model_validate(document).model_dump_json())
    with pytest.raises(ConfigError, match="here and there lie in different stores"):
        palettes.find_members(_order(*map(str, paths)), None, tiny_config.paths.work)


def test_new_tokens_of_one_identifier_do_not_mix(tiny_config: Config):
    shop = Ordered(tiny_config)
    shop.add("dog", "pivotal")
    shop.add("cat", "pivotal")
    shop.add("hat", "pivotal", identifier="zwx")
    assert len(palettes.model_mixes(_order("dog + hat"), shop.members, shop.store)) == 1
    with pytest.raises(ConfigError, match="bring new tokens for 'sks': they cannot mix"):
        palettes.model_mixes(_order("dog + cat"), shop.members, shop.store)


def test_bases_do_not_mix(tiny_config: Config, tmp_path: Path):
    import shutil

    shop = Ordered(tiny_config)
    shop.add("dog")
    other = tmp_path / "other"
    shutil.copytree(tiny_config.model.base, other)
    (other / "README.md").write_text("another one")
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("{", '{"steps_offset": 1,', 1))
    moved = tiny_config.model.model_copy(update={"base": str(other)})
    shop.config = tiny_config.model_copy(update={"model": moved})
    shop.add("hat")
    with pytest.raises(ConfigError, match="were trained on different bases: they cannot mix"):
        shop.plan(shop.order(models="dog + hat"))
