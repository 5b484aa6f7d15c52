"""What holds for every family; `stable_diffusion` stands for those that read its format."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from dreambooth_core import plugins
from dreambooth_core.errors import ConfigError, ModelError
from dreambooth_core.families import load_family

NAMES = plugins.names("dreambooth_core.families")
BASES = {"stable_diffusion": "tiny_base"}
"""Family -> fixture with a tiny base; a new family adds its own."""


@pytest.fixture(params=NAMES)
def loaded(request: pytest.FixtureRequest):
    base = request.getfixturevalue(BASES[request.param])
    family = load_family(request.param)
    return family, family.load(base, {})


def test_parts_are_frozen_float32(loaded) -> None:
    family, parts = loaded
    for name in (family.denoiser, family.autoencoder, *family.text_encoders):
        weights = list(parts[name].parameters())
        assert {weight.dtype for weight in weights} == {torch.float32}
        assert not any(weight.requires_grad for weight in weights)


def test_prediction_has_the_latents_shape(loaded) -> None:
    family, parts = loaded
    found = family.encode_images(parts, torch.zeros(2, 3, 32, 32))
    assert found.mean.shape == found.log_variance.shape
    with torch.no_grad():
        tokens = family.tokenize(parts, ["a dog", "a cat on the beach"])
        conditioning = family.encode_prompts(parts, tokens)
        answer = family.predict(parts, found.mean, torch.tensor([0, 999]), conditioning)
    assert answer.shape == found.mean.shape
    assert family.objective(parts).timesteps == 1000


def test_conditioning_is_what_the_pipeline_computes(loaded) -> None:
    family, parts = loaded
    prompts = ["a dog", "a cat on the beach"]
    ours = family.encode_prompts(parts, family.tokenize(parts, prompts))
    theirs = family.pipeline(parts).encode_prompt(prompts, "cpu", 1, False)[0]
    assert any(torch.equal(value, theirs) for value in ours.values())


def test_adapters_find_their_layers(loaded) -> None:
    family, parts = loaded
    for component, ends in family.lora_targets.items():
        names = [name for name, _ in parts[component].named_modules()]
        assert all(any(name.endswith(end) for name in names) for end in ends)


def test_unknown_family() -> None:
    with pytest.raises(ConfigError, match="stable_diffusion"):
        load_family("nonsense")


def _copy(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    return folder


def test_a_model_of_another_family_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    base = _copy(tiny_base, tmp_path / "base")
    index = json.loads((base / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionXLPipeline"
    (base / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="StableDiffusionXLPipeline"):
        load_family("stable_diffusion").load(base, {})


@pytest.mark.parametrize("broken", ["index", "folder", "weights", "cut"])
def test_an_incomplete_model_is_one_sentence(tiny_base: Path, tmp_path: Path, broken: str) -> None:
    base = _copy(tiny_base, tmp_path / "base")
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    if broken == "index":
        (base / "model_index.json").unlink()
    elif broken == "folder":
        shutil.rmtree(base / "vae")
    elif broken == "weights":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError) as caught:
        load_family("stable_diffusion").load(base, {})
    assert "\n" not in str(caught.value)


def test_pickles_are_not_read(tiny_base: Path, tmp_path: Path) -> None:
    base = _copy(tiny_base, tmp_path / "base")
    parts = load_family("stable_diffusion").load(tiny_base, {})
    (base / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    state = parts["unet"].state_dict()
    torch.save(state, base / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_family("stable_diffusion").load(base, {})
