"""Digests of the base's content, and the pinned commit of Hub ids."""

import shutil
from pathlib import Path

import pytest

from dreambooth_core.config import Model
from dreambooth_core.diffusion.base_model import base_digest, base_folder
from dreambooth_core.errors import ConfigError, ModelError


def test_digest_is_of_the_content(tiny_base: Path, tmp_path: Path) -> None:
    first = base_digest(Model(base=str(tiny_base)))
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    (copy / "README.md").write_text("a card is not the model")
    (copy / "safety_checker").mkdir()
    (copy / "safety_checker" / "model.safetensors").write_bytes(b"never read")
    assert base_digest(Model(base=str(copy))) == first
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert base_digest(Model(base=str(copy))) != first


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no model files"):
        base_digest(Model(base=str(tmp_path)))


@pytest.mark.parametrize("revision", [None, "main", "abc123"])
def test_a_hub_id_needs_its_commit(revision: str | None) -> None:
    with pytest.raises(ConfigError, match="40 hex digits"):
        base_folder(Model(base="owner/model", revision=revision))


def test_a_missing_folder_is_not_taken_for_a_hub_id() -> None:
    with pytest.raises(ConfigError, match="no folder"):
        base_folder(Model(base="./missing/model"))
