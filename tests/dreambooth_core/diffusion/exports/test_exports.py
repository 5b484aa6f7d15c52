"""Supported formats, where files are written, and their metadata."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from dreambooth_core import plugins
from dreambooth_core.diffusion import exports
from dreambooth_core.diffusion.exports import TrainedModel
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage.records import Weights
from tests.dreambooth_core.diffusion.exports.trained import INFO, config_of, trained
from tests.tiny_bases import StableDiffusionXLPipeline

NAMES = plugins.names("dreambooth_core.diffusion.exports")


@pytest.fixture(scope="module")
def lora(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return trained("stable_diffusion", tiny_base, "lora", tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def pivotal(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return trained("stable_diffusion", tiny_base, "pivotal", tmp_path_factory.mktemp("pivotal"))


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _texts(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str) -> None:
    found = exports.load_export(name)
    assert found.name == name
    assert found.description
    assert all(methods for methods in found.takes.values())


@pytest.mark.parametrize(
    ("family", "method", "wanted"),
    [
        ("stable_diffusion", "full", ["diffusers", "single_file"]),
        ("sdxl", "lokr", ["diffusers", "single_file"]),
        ("sdxl", "dora", ["diffusers", "lora_diffusers", "single_file"]),
        ("flux", "full", ["diffusers"]),
        ("flux", "lora", ["diffusers", "lora_comfy", "lora_diffusers", "lora_kohya"]),
        ("sana", "lora", ["diffusers", "lora_diffusers"]),
        ("sana", "pivotal", []),
        ("stable_diffusion", "textual_inversion", ["diffusers", "embedding"]),
    ],
)
def test_possible(family: str, method: str, wanted: list[str]) -> None:
    assert exports.possible(family, method) == wanted


def test_possible_does_not_import_the_model_libraries() -> None:
    program = (
        "import sys; from dreambooth_core.diffusion import exports; exports.possible('sdxl', 'lora');"
        "assert not {'torch', 'diffusers', 'peft', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_unsupported_models_are_refused(lora: TrainedModel, tmp_path: Path) -> None:
    flux = dataclasses.replace(lora, family="flux")
    with pytest.raises(
        ConfigError, match="supported: diffusers, lora_comfy, lora_diffusers, lora_"
    ):
        exports.export("single_file", flux, tmp_path)
    lokr = dataclasses.replace(lora, method="lokr")
    with pytest.raises(ConfigError, match=r"trained by lokr; supported: diffusers, single_file$"):
        exports.export("lora_kohya", lokr, tmp_path)
    with pytest.raises(ConfigError, match="lora_kohya"):
        exports.export("ckpt", lora, tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("title", ["../toy", "a/b", "", ".hidden", "toy\n", "x" * 65])
def test_a_title_cannot_leave_the_folder(lora: TrainedModel, tmp_path: Path, title: str) -> None:
    named = dataclasses.replace(lora, info=dataclasses.replace(INFO, title=title))
    with pytest.raises(ConfigError, match="is not a valid file name"):
        exports.export("lora_kohya", named, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["diffusers", "lora_diffusers", "lora_kohya", "lora_comfy"])
def test_equal_bytes_and_no_temporary_files(
    pivotal: TrainedModel, tmp_path: Path, name: str
) -> None:
    first = exports.export(name, pivotal, tmp_path / "out")
    assert sorted(first) == sorted((tmp_path / "out").iterdir())
    before = _files(tmp_path / "out")
    (tmp_path / "out" / "kept.txt").write_text("another file")
    assert exports.export(name, pivotal, tmp_path / "out") == first
    assert _files(tmp_path / "out") == {**before, "kept.txt": b"another file"}


def test_exported_files_have_the_umasks_permissions(lora: TrainedModel, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        (path,) = exports.export("lora_kohya", lora, tmp_path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_export_keeps_the_old_one(lora: TrainedModel, tmp_path: Path) -> None:
    exports.export("diffusers", lora, tmp_path)
    before = _files(tmp_path)
    gone = dataclasses.replace(lora, weights=tmp_path / "gone")
    with pytest.raises(OSError, match="gone"):
        exports.export("diffusers", gone, tmp_path)
    assert _files(tmp_path) == before


def test_a_folder_that_is_no_export_is_not_replaced(lora: TrainedModel, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "notes.txt").write_text("text")
    with pytest.raises(ConfigError, match="no export wrote"):
        exports.export("diffusers", lora, tmp_path)
    assert _files(tmp_path) == {"toy/notes.txt": b"text"}


def test_a_link_is_replaced_and_not_followed(lora: TrainedModel, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("content")
    out = tmp_path / "out"
    out.mkdir()
    (out / "toy.safetensors").symlink_to(tmp_path / "target")
    exports.export("lora_kohya", lora, out)
    assert not (out / "toy.safetensors").is_symlink()
    assert (tmp_path / "target").read_text() == "content"


def test_modelspec(lora: TrainedModel, tmp_path: Path) -> None:
    path = exports.export("lora_kohya", lora, tmp_path)[0]
    data = path.read_bytes()
    tensors = data[8 + int.from_bytes(data[:8], "little") :]
    own = {k: v for k, v in _texts(path).items() if k.startswith("modelspec.")}
    assert own == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "https://github.com/kohya-ss/sd-scripts",
        "modelspec.title": "toy",
        "modelspec.description": f"sks robot: trained on owner/model at {'1' * 40} by lora; "
        f"weights {'0' * 64}",
        "modelspec.hash_sha256": f"0x{hashlib.sha256(tensors).hexdigest()}",
        "modelspec.resolution": "32x32",
        "modelspec.usage_hint": "Trigger words: sks robot",
        "modelspec.trigger_phrase": "sks robot",
        "modelspec.prediction_type": "epsilon",
        "modelspec.license": "CreativeML Open RAIL-M",
    }


def test_new_tokens_are_exported_under_their_trigger_word(
    pivotal: TrainedModel, tmp_path: Path
) -> None:
    lora, embedding = exports.export("lora_kohya", pivotal, tmp_path)
    assert embedding.name == "toy-sks.safetensors"
    assert _texts(embedding)["modelspec.trigger_phrase"] == "toy-sks"
    assert _texts(embedding)["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    with safe_open(embedding, framework="pt") as file:
        assert list(file.keys()) == ["emb_params"]
        assert file.get_slice("emb_params").get_shape() == [2, 32]
    assert _texts(lora)["modelspec.trigger_phrase"] == "toy-sks robot"


def test_safety_checker_and_variants_are_not_copied(lora: TrainedModel, tmp_path: Path) -> None:
    base = tmp_path / "base"
    exports.export("diffusers", lora, tmp_path)[0].rename(base)
    index = json.loads((base / "model_index.json").read_text())
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index |= {"safety_checker": checker, "requires_safety_checker": True}
    (base / "model_index.json").write_text(json.dumps(index))
    for name in ("model.bin", "diffusion_pytorch_model.fp16.safetensors"):
        (base / "vae" / name).write_bytes(b"-")
    again = exports.export("diffusers", dataclasses.replace(lora, base=base), tmp_path)[0]
    found = json.loads((again / "model_index.json").read_text())
    assert found["safety_checker"] == [None, None]
    assert found["requires_safety_checker"] is False
    assert sorted(path.name for path in (again / "vae").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def test_clip_names_are_those_that_all_versions_of_transformers_read(
    lora: TrainedModel, tmp_path: Path
) -> None:
    folder = exports.export("diffusers", lora, tmp_path)[0]
    with safe_open(folder / "text_encoder" / "model.safetensors", framework="pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"text_model"}  # noqa: SIM118
    folder = exports.export("lora_diffusers", lora, tmp_path)[0]
    with safe_open(folder / "pytorch_lora_weights.safetensors", framework="pt") as file:
        prefixes = {tuple(name.split(".")[:2]) for name in file.keys() if "text" in name}  # noqa: SIM118
    assert prefixes == {("text_encoder", "text_model")}


@pytest.mark.parametrize("name", NAMES)
def test_the_page_names_every_format(name: str) -> None:
    page = (Path(__file__).parents[4] / "docs" / "exports.md").read_text(encoding="utf-8")
    assert f"\n| `{name}` |" in page


def test_source_of_a_registered_model(tiny_base: Path, tmp_path: Path) -> None:
    config = config_of("stable_diffusion", tiny_base, "lora")
    weights = Weights(uri="file:///w", digest="ab", method="lora", files={}, steps=1)
    source = exports.source_of(config, weights, tmp_path)
    assert (source.base, source.weights, source.method) == (tiny_base, tmp_path, "lora")
    assert (source.info.title, source.info.trigger) == ("toy", "sks robot")


def test_single_file_marks_v_prediction_and_keeps_the_bases_dtypes(tmp_path: Path) -> None:
    import torch
    from diffusers import UNet2DConditionModel

    base = StableDiffusionXLPipeline.build(tmp_path / "base", "v_prediction")
    unet = UNet2DConditionModel.from_pretrained(base / "unet").to(torch.float16)
    unet.save_pretrained(base / "unet")
    source = trained("sdxl", base, "full", tmp_path / "weights")
    path = exports.export("single_file", source, tmp_path / "out")[0]
    with safe_open(path, framework="pt") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert "v_pred" in types
    assert "ztsnr" not in types
    of_unet = {kind for name, kind in types.items() if name.startswith("model.diffusion_model.")}
    of_vae = {kind for name, kind in types.items() if name.startswith("first_stage_model.")}
    assert (of_unet, of_vae) == ({"F16"}, {"F32"})
    assert _texts(path)["modelspec.prediction_type"] == "v"
    assert _texts(path)["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
