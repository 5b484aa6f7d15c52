"""Model names: registered versions, configs of trainings, and unknown names."""

from pathlib import Path

import pytest

from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError
from dreambooth_core.registry.resolve import find_models, find_runs
from tests.orders_for_real import SampledModels


def test_registered_versions_are_found_by_name_alias_and_number(tracked_config: Config):
    SampledModels(tracked_config).register("dog")
    work = tracked_config.paths.work
    models = find_models(["dog", "dog@candidate", "dog/1"], None, work)
    assert {model.name for model in models.values()} == {"dog/1"}
    for name in ("cat", "dog/9", "dog@nobody"):
        with pytest.raises(ConfigError, match=f"no registered model {name}: use NAME"):
            find_models([name], None, work)
    runs = find_runs(["base", "dog", "cards"], None, work)
    assert runs == {"base": None, "dog": models["dog"], "cards": None}
    with pytest.raises(ConfigError, match="no registered model dog/9: use NAME"):
        find_runs(["dog/9"], None, work)


def test_configs_of_one_name_are_named_by_their_paths(tiny_config: Config, tmp_path: Path):
    """Otherwise the images of one would be taken for images of the other."""
    paths = [str(tmp_path / f"{name}.yaml") for name in ("first", "second")]
    for path in paths:
        Path(path).write_text(tiny_config.model_dump_json())
    work = tiny_config.paths.work
    assert find_models(paths[:1], None, work)[paths[0]].name == "tiny"
    models = find_models(paths, None, work)
    assert [models[path].name for path in paths] == [f"tiny ({path})" for path in paths]


def test_models_of_two_stores_need_two_jobs(tiny_config: Config, tmp_path: Path):
    paths = [tmp_path / f"{name}.yaml" for name in ("first", "second")]
    for path in paths:
        storage = {"uri": f"file://{tmp_path / path.stem}", "endpoint": None}
        document = {**tiny_config.model_dump(mode="json"), "storage": storage, "name": path.stem}
        path.write_text(Config.model_validate(document).model_dump_json())
    with pytest.raises(ConfigError, match="first and second are in different stores"):
        find_models(map(str, paths), None, tiny_config.paths.work)
