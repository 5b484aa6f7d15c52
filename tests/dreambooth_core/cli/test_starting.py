"""`dreambooth init`, and `run` for a folder of photos."""

import json
from pathlib import Path

import pytest
import yaml

from dreambooth_core.cli.starting import write_config
from dreambooth_core.config import Config, load_config, recipe_names
from dreambooth_core.config.starting import starting_config
from dreambooth_core.errors import ConfigError, ModelError
from tests.conftest import build_tiny_base
from tests.dreambooth_core.cli.test_cli import dreambooth

SMALL_WORLD = Path("examples/small_world").resolve()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the small world in it."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "small_world").symlink_to(SMALL_WORLD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write(photos: str = "examples/small_world/photos/dog", **options) -> Path:
    chosen = {"class_noun": "dog", "base": "examples/small_world/base", **options}
    names = ("class_noun", "name", "base", "recipe", "steps")
    return write_config(Path(photos), *(chosen.get(name) for name in names))


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_becomes_a_config_with_comments(recipe: str) -> None:
    own = {"name": "rex", "subject": {"images": "photos", "class_noun": "dog"}}
    text = starting_config(recipe, own, "dreambooth init photos")
    config = Config.model_validate(yaml.safe_load(text))
    assert (config.name, config.subject.class_noun) == ("rex", "dog")
    assert "# Optimizer steps" in text
    assert max(map(len, text.splitlines())) < 220


@pytest.mark.usefixtures("here")
def test_the_small_worlds_base_gets_its_own_recipe() -> None:
    config = load_config(_write(name="rex", steps=100))
    assert (config.name, config.train.steps, config.model.resolution) == ("rex", 100, 64)
    assert config.evaluation.detector is not None


def test_a_base_folder_gets_the_lora_recipe_of_its_family(here: Path) -> None:
    build_tiny_base(here / "flux", "FluxPipeline")
    config = load_config(_write(base="flux", name="rex"))
    assert (config.model.family, config.train.method, config.adapter.rank) == ("flux", "lora", 16)


@pytest.mark.usefixtures("here")
def test_the_same_command_again_keeps_the_file_and_another_one_is_refused() -> None:
    first = _write()
    assert _write() == first == Path("dog.yaml")
    with pytest.raises(ConfigError, match=r"^dog.yaml exists and differs: use it by"):
        _write(steps=100)
    assert load_config(first).train.steps == 250


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_noun": None}, "photos of what"),
        ({"base": None}, "no base model is named: add --base, such as stable-diffusion-v1-5/"),
        ({"photos": "absent"}, "is no folder"),
        ({"steps": 1}, "lr_warmup_steps must be below"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_is_missing_is_named_and_no_file_is_written(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        _write(**options)
    assert not list(Path().glob("*.yaml"))


def test_a_base_of_no_family_is_refused(here: Path) -> None:
    (here / "base").mkdir()
    (here / "base" / "model_index.json").write_text(json.dumps({"_class_name": "AnyPipeline"}))
    with pytest.raises(ConfigError, match=r"holds a AnyPipeline, which no model family trains"):
        _write(base="base")


@pytest.mark.usefixtures("here")
def test_a_hub_id_without_a_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:9")
    with pytest.raises(ModelError, match=r"main of stable-diffusion-v1-5.* from the Hub"):
        _write(base="stable-diffusion-v1-5/stable-diffusion-v1-5")


@pytest.mark.usefixtures("here")
def test_run_plans_a_folder_of_photos() -> None:
    words = ("examples/small_world/photos/dog", "--class", "dog", "--name", "rex")
    base = ("--base", "examples/small_world/base", "--set", "tracking.uri=sqlite:///mlflow.db")
    store = ("--set", "storage.endpoint=null", "--set", "storage.uri=file://store")
    done = dreambooth("run", *words, *base, *store, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert "the config of this run is rex.yaml" in done.stderr
    assert json.loads(done.stdout)["config"]["name"] == "rex"
    given = dreambooth("run", "rex.yaml", "--class", "cat")
    assert given.returncode == 2
    assert "are for a folder of photos" in given.stderr


def test_the_version() -> None:
    assert dreambooth("--version").stdout == "dreambooth 0.1.0\n"
