"""Tests of the checks before `run`, `train` and their `--dry-run`."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dreambooth_core.config import Config
from dreambooth_core.diffusion.model_folders import CONFIG_BYTES
from dreambooth_core.errors import ConfigError, ModelError
from dreambooth_core.training import preflight


@pytest.fixture
def config(tiny_config: Config, tiny_base: Path, tmp_path: Path) -> Config:
    """A config whose base is a copy that the test may damage."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    model = tiny_config.model.model_copy(update={"base": str(base)})
    return tiny_config.model_copy(update={"model": model})


def _index(base: Path, text: str) -> None:
    (base / "model_index.json").write_text(text)


def _without(base: Path, name: str) -> None:
    shutil.rmtree(base / name)


def _unnamed(base: Path, name: str) -> None:
    index = json.loads((base / "model_index.json").read_text())
    del index[name]
    _index(base, json.dumps(index))


def _weightless(base: Path, name: str) -> None:
    for path in (base / name).glob("*.safetensors"):
        path.unlink()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no index": (lambda base: (base / "model_index.json").unlink(), "has no model_index.json"),
    "a list": (lambda base: _index(base, "[1]"), "holds a list, not a JSON object"),
    "no JSON": (lambda base: _index(base, "{"), "not readable JSON"),
    "no text": (lambda base: (base / "model_index.json").write_bytes(b"\xff\xfe"), "not readable"),
    "deep": (lambda base: _index(base, "[" * 100_000), "not readable JSON"),
    "huge": (lambda base: _index(base, " " * CONFIG_BYTES + "{}"), "must be a file of at most"),
    "a folder": (lambda base: (_index(base, ""), _as_folder(base))[1], "must be a file of at most"),
    "a FIFO": (lambda base: _as_fifo(base), "must be a file of at most"),
    "odd entry": (lambda base: _index(base, '{"unet": [1]}'), "holds a None, not a"),
    "empty": (lambda base: _index(base, "{}"), "holds a None, not a StableDiffusionPipeline"),
    "no unet": (lambda base: _without(base, "unet"), "has no unet "),
    "no scheduler": (lambda base: _without(base, "scheduler"), "has no scheduler "),
    "no tokenizer": (lambda base: _without(base, "tokenizer"), "has no tokenizer "),
    "unnamed vae": (lambda base: _unnamed(base, "vae"), "has no vae "),
    "no weights": (lambda base: _weightless(base, "text_encoder"), "has no text_encoder "),
    "broken config": (lambda base: (base / "unet/config.json").write_text("x"), "unet/config.json"),
}


def _as_folder(base: Path) -> None:
    (base / "model_index.json").unlink()
    (base / "model_index.json").mkdir()


def _as_fifo(base: Path) -> None:
    (base / "model_index.json").unlink()
    os.mkfifo(base / "model_index.json")


def test_a_good_base_passes(config: Config) -> None:
    preflight.check(config)
    assert not config.paths.work.exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_base_is_refused(config: Config, damage: str) -> None:
    act, message = DAMAGES[damage]
    act(Path(config.model.base))
    with pytest.raises(ModelError, match=message) as caught:
        preflight.check(config)
    assert config.model.base in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_component_config_of_no_model_is_refused(config: Config) -> None:
    preflight.check_shapes(config)
    for name, text in (
        ("unet", '{"block_out_channels": "x"}'),
        ("text_encoder", '{"hidden_size": []}'),
    ):
        (Path(config.model.base) / name / "config.json").write_text(text)
        with pytest.raises(ModelError, match="cannot be loaded as a StableDiffusionPipeline"):
            preflight.check_shapes(config)


def test_a_base_of_another_family_is_refused(config: Config) -> None:
    model = config.model.model_copy(update={"family": "sdxl"})
    with pytest.raises(ModelError, match=r"not a StableDiffusionXLPipeline; set model\.family"):
        preflight.check(config.model_copy(update={"model": model}))


def test_work_folders_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for work in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            ConfigError, match=f"paths.work {work} cannot be created: .*is no folder"
        ):
            preflight.check_work(work)
    preflight.check_work(tmp_path / "new" / "below")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change the user")
def test_a_read_only_work_folder(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o755)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            preflight.check_work(tmp_path / "locked" / "work")
        except ConfigError as error:
            os._exit(2 if "is read-only for this user" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
