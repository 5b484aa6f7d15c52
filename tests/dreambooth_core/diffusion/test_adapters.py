"""Trainable parameters of each method, and exported weights loaded by us and by diffusers."""

import importlib
import inspect
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from pydantic import ValidationError

from dreambooth_core import plugins
from dreambooth_core.config import ADAPTERS, INVERSIONS, Config
from dreambooth_core.diffusion import (
    adapter_layers,
    adapters,
    safetensors_files,
    textual_inversion,
)
from dreambooth_core.diffusion.families import Family, Parts, load_family
from dreambooth_core.errors import ConfigError, ModelError

FAMILY = load_family("stable_diffusion")
METHODS = ("full", "lora", "dora", "lokr", "textual_inversion", "pivotal")
FILES = {
    "lora": {adapters.LORA_FILE},
    "dora": {adapters.LORA_FILE},
    "lokr": {"unet_lokr.safetensors", "text_encoder_lokr.safetensors"},
    "textual_inversion": {textual_inversion.FILE},
    "pivotal": {adapters.LORA_FILE, textual_inversion.FILE},
}


class FrozenEncoders(type(FAMILY)):  # type: ignore[misc]
    """A family without trainable text encoders."""

    tokenizers: Mapping[str, str] = {}


def _config(method: str, **sections: Any) -> Config:
    return Config.model_validate(
        {
            "name": "tiny",
            "subject": {"images": "photos", "class_noun": "dog"},
            "prior": {"enabled": False},
            "adapter": {"rank": 4, "alpha": 8},
            **sections,
            "train": {"method": method, **sections.get("train", {})},
        }
    )


def _perturb(trained: adapters.Trained, size: float = 0.05) -> None:
    """Add noise to all trainable parameters."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in trained.values():
            for weight in weights.values():
                weight += size * torch.randn(weight.shape, generator=draws)


def _trained(base: Path, config: Config) -> Parts:
    parts = FAMILY.load(base)
    _perturb(adapters.prepare(FAMILY, parts, config))
    return parts


def _prediction(parts: Parts, prompt: str = "a photo of sks dog") -> torch.Tensor:
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        conditioning = FAMILY.encode_prompts(parts, FAMILY.tokenize(parts, [prompt]))
        return FAMILY.predict(parts, noisy, torch.tensor([500]), conditioning)


def _prompt_with_tokens(config: Config) -> str:
    tokens = textual_inversion.tokens_of(config) if config.train.method in INVERSIONS else {}
    return textual_inversion.insert_tokens(tokens, "a photo of sks dog")


@pytest.mark.parametrize(
    ("method", "text_encoder", "wanted"),
    [
        ("full", None, ("unet", "text_encoder")),
        ("full", False, ("unet",)),
        ("dora", True, ("unet", "text_encoder")),
        ("lokr", False, ("unet",)),
        ("textual_inversion", None, ("text_encoder",)),
        ("pivotal", False, ("unet", "text_encoder")),
    ],
)
def test_trained_components(
    method: str, text_encoder: bool | None, wanted: tuple[str, ...]
) -> None:
    config = _config(method, train={"text_encoder": text_encoder})
    assert adapters.trained_components(FAMILY, config) == wanted


def test_families_without_trainable_encoders() -> None:
    family = FrozenEncoders()
    assert adapters.trained_components(family, _config("lora")) == ("unet",)
    with pytest.raises(ConfigError, match="text_encoder: true"):
        adapters.trained_components(family, _config("lora", train={"text_encoder": True}))
    for method in INVERSIONS:
        with pytest.raises(ConfigError, match="new tokens"):
            adapters.trained_components(family, _config(method))


def test_textual_inversion_refuses_training_the_text_encoder() -> None:
    with pytest.raises(ValidationError, match="pivotal"):
        _config("textual_inversion", train={"text_encoder": True})


@pytest.mark.parametrize("method", METHODS)
def test_only_trainable_parameters_are_float32_with_gradients(tiny_base: Path, method: str) -> None:
    config = _config(method)
    parts = FAMILY.load(tiny_base, None, torch.bfloat16)
    trained = adapters.prepare(FAMILY, parts, config)
    assert tuple(trained) == adapters.trained_components(FAMILY, config)
    assert all(weights for weights in trained.values())
    trainable = {id(weight) for weights in trained.values() for weight in weights.values()}
    for name in ("unet", "text_encoder", "vae"):
        for weight in parts[name].parameters():
            assert weight.requires_grad == (id(weight) in trainable)
            assert weight.dtype == (torch.float32 if id(weight) in trainable else torch.bfloat16)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "full"])
def test_untrained_weights_predict_bit_identically_to_the_base(
    tiny_base: Path, method: str
) -> None:
    untouched = _prediction(FAMILY.load(tiny_base))
    parts = FAMILY.load(tiny_base)
    adapters.prepare(FAMILY, parts, _config(method))
    assert torch.equal(_prediction(parts), untouched)


@pytest.mark.parametrize("method", ADAPTERS)
def test_disabled_adapters_predict_bit_identically_to_the_base(
    tiny_base: Path, method: str
) -> None:
    untouched = _prediction(FAMILY.load(tiny_base))
    parts = _trained(tiny_base, _config(method, train={"text_encoder": True}))
    trained = _prediction(parts)
    assert (trained - untouched).abs().max() > 1e-2
    with adapters.disabled(FAMILY, parts):
        assert torch.equal(_prediction(parts), untouched)
    assert torch.equal(_prediction(parts), trained)


def test_disabling_adapters_does_not_change_requires_grad(tiny_base: Path) -> None:
    parts = FAMILY.load(tiny_base)
    trained = adapters.prepare(FAMILY, parts, _config("lora"))
    for weight in trained["text_encoder"].values():
        weight.requires_grad_(False)
    with adapters.disabled(FAMILY, parts.without("text_encoder")):
        assert all(weight.requires_grad for weight in trained["unet"].values())
    with pytest.raises(KeyError), adapters.disabled(FAMILY, parts):
        _ = parts["nothing"]
    assert not any(weight.requires_grad for weight in trained["text_encoder"].values())
    _perturb(trained)
    with adapters.disabled(FAMILY, parts):
        off = _prediction(parts)
    assert not torch.equal(_prediction(parts), off)  # enabled again after an exception


@pytest.mark.parametrize("method", ["lora", "lokr"])
def test_a_new_adapter_depends_on_the_run_seed_only(tiny_base: Path, method: str) -> None:
    drawn, names = [], set()
    for index, seed in enumerate((1, 1, 2)):
        torch.manual_seed(index)  # must have no effect and not be changed
        before = torch.random.get_rng_state()
        trained = adapters.prepare(FAMILY, FAMILY.load(tiny_base), _config(method, seed=seed))
        assert torch.equal(torch.random.get_rng_state(), before)
        drawn.append(torch.cat([weight.flatten() for weight in trained["unet"].values()]))
        names.add(tuple(name for weights in trained.values() for name in weights))
    assert len(names) == 1
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("text_encoder", [True, False])
def test_exported_full_weights_load_again(
    tiny_base: Path, tmp_path: Path, text_encoder: bool
) -> None:
    config = _config("full", train={"text_encoder": text_encoder})
    parts = _trained(tiny_base, config)
    before = _prediction(parts)
    adapters.export(FAMILY, parts, config, tiny_base, tmp_path)
    names = {"unet", "text_encoder"} if text_encoder else {"unet"}
    assert {path.name for path in tmp_path.iterdir()} == names
    again = FAMILY.load(tiny_base, {name: tmp_path / name for name in names})
    assert torch.equal(_prediction(adapters.apply(FAMILY, again, tmp_path)), before)


def test_half_precision_bases_give_half_precision_weights(tiny_base: Path, tmp_path: Path) -> None:
    parts = FAMILY.load(tiny_base)
    for name in ("unet", "text_encoder"):
        parts[name].half().save_pretrained(tmp_path / "base" / name, safe_serialization=True)
    config = _config("full")
    adapters.export(FAMILY, _trained(tiny_base, config), config, tmp_path / "base", tmp_path / "x")
    for name in ("unet", "text_encoder"):
        assert adapters.stored_dtype(tmp_path / "x" / name) == torch.float16


@pytest.mark.parametrize("method", [method for method in METHODS if method != "full"])
def test_exported_adapters_and_tokens_are_merged_into_plain_layers(
    tiny_base: Path, tmp_path: Path, method: str
) -> None:
    config = _config(method, adapter={"rank": 4, "alpha": 8, "ranks": {"to_q": 2, "to_[kv]": 6}})
    parts = _trained(tiny_base, config)
    before = _prediction(parts, _prompt_with_tokens(config))
    adapters.export(FAMILY, parts, config, tiny_base, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES[method]
    again = FAMILY.load(tiny_base)
    kinds = [type(module) for module in again["unet"].modules()]
    state = torch.random.get_rng_state()
    again = adapters.apply(FAMILY, again, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [type(module) for module in again["unet"].modules()] == kinds
    torch.testing.assert_close(
        _prediction(again, _prompt_with_tokens(config)), before, rtol=1e-5, atol=1e-5
    )
    untouched = _prediction(FAMILY.load(tiny_base))
    assert (untouched - before).abs().max() > 1e-2


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("text_encoder", [True, False])
def test_diffusers_loads_the_same_model(
    tiny_base: Path, tmp_path: Path, method: str, text_encoder: bool
) -> None:
    ranks = {"to_q": 2, "to_v": 6}
    config = _config(
        method,
        train={"text_encoder": text_encoder},
        adapter={"rank": 4, "alpha": 8, "ranks": ranks},
    )
    parts = _trained(tiny_base, config)
    before = _prediction(parts)
    adapters.export(FAMILY, parts, config, tiny_base, tmp_path)
    pipeline = FAMILY.pipeline(FAMILY.load(tiny_base))
    pipeline.load_lora_weights(tmp_path, weight_name=adapters.LORA_FILE)
    found = _prediction(Parts(pipeline.components))
    torch.testing.assert_close(found, before, rtol=1e-5, atol=1e-5)


def test_diffusers_loads_a_denoisers_lokr(tiny_base: Path, tmp_path: Path) -> None:
    config = _config("lokr", train={"text_encoder": False})
    parts = _trained(tiny_base, config)
    before = _prediction(parts)
    adapters.export(FAMILY, parts, config, tiny_base, tmp_path)
    again = FAMILY.load(tiny_base)
    again["unet"].load_lora_adapter(tmp_path, weight_name="unet_lokr.safetensors", prefix=None)
    torch.testing.assert_close(_prediction(again), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "lokr", "pivotal"])
def test_the_same_weights_are_the_same_bytes(tiny_base: Path, tmp_path: Path, method: str) -> None:
    config = _config(method, adapter={"ranks": {"to_q": 2, "to_k": 3}})
    parts = _trained(tiny_base, config)
    found = set()
    for index in range(8):  # the library orders metadata randomly
        adapters.export(FAMILY, parts, config, tiny_base, tmp_path / str(index))
        files = sorted((tmp_path / str(index)).iterdir())
        found.add(b"".join(path.read_bytes() for path in files))
    assert len(found) == 1


def test_exported_weights_do_not_contain_the_bases_path(tiny_base: Path, tmp_path: Path) -> None:
    config, found = _config("full"), []
    for name in ("one", "other"):
        base, out = shutil.copytree(tiny_base, tmp_path / name), tmp_path / f"{name}-weights"
        adapters.export(FAMILY, FAMILY.load(base), config, base, out)
        files = [path for path in sorted(out.rglob("*")) if path.is_file()]
        found.append({str(path.relative_to(out)): path.read_bytes() for path in files})
    assert found[0] == found[1]
    assert not any(bytes(tmp_path) in content for content in found[0].values())


def _deltas(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Layer of the denoiser -> change of its weight by the exported weights."""
    after, before = adapters.apply(FAMILY, FAMILY.load(base), folder), FAMILY.load(base)
    old = before["unet"].state_dict()
    return {
        name.removesuffix(".weight"): weight - old[name]
        for name, weight in after["unet"].state_dict().items()
    }


def test_the_scale_is_alpha_over_rank_for_every_layer(tiny_base: Path, tmp_path: Path) -> None:
    own = {r"attentions\.0\.transformer_blocks\.0\.attn1\.to_q": 2, "to_k": 16}
    config = _config("lora", adapter={"rank": 4, "alpha": 10, "ranks": own})
    parts = _trained(tiny_base, config)
    adapters.export(FAMILY, parts, config, tiny_base, tmp_path)
    state, _ = safetensors_files.read(tmp_path / adapters.LORA_FILE)
    deltas = _deltas(tiny_base, tmp_path)
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    for end, rank in {"attn1.to_q": 2, "attn2.to_q": 4, "attn2.to_k": 16, "attn1.to_v": 4}.items():
        layer = f"{block}.{end}"
        down, up = (state[f"unet.{layer}.lora_{side}.weight"] for side in "AB")
        assert down.shape[0] == up.shape[1] == rank
        wanted = 10 / 4 * up @ down
        torch.testing.assert_close(deltas[layer], wanted, rtol=0, atol=1e-6)


def test_dora_scales_each_output_row_to_its_learned_norm(tiny_base: Path, tmp_path: Path) -> None:
    config = _config("dora", adapter={"rank": 4, "alpha": 10})
    adapters.export(FAMILY, _trained(tiny_base, config), config, tiny_base, tmp_path)
    state, _ = safetensors_files.read(tmp_path / adapters.LORA_FILE)
    layer = "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    down, up, lengths = (
        state[f"unet.{layer}.lora_{name}.weight"] for name in ("A", "B", "magnitude_vector")
    )
    old = FAMILY.load(tiny_base)["unet"].get_submodule(layer).weight
    turned = old + 10 / 4 * up @ down
    wanted = lengths[:, None] * turned / turned.norm(dim=1, keepdim=True) - old
    torch.testing.assert_close(_deltas(tiny_base, tmp_path)[layer], wanted, rtol=0, atol=1e-6)


def test_lokr_is_a_scaled_kronecker_product(tiny_base: Path, tmp_path: Path) -> None:
    config = _config("lokr", adapter={"rank": 2, "alpha": 3, "ranks": {"attn2.to_k": 1}})
    adapters.export(FAMILY, _trained(tiny_base, config), config, tiny_base, tmp_path)
    state, _ = safetensors_files.read(tmp_path / "unet_lokr.safetensors")
    deltas = _deltas(tiny_base, tmp_path)
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    for end, rank in {"attn1.to_q": 2, "attn2.to_k": 1}.items():
        left, up, down = (state[f"{block}.{end}.lokr_w{name}"] for name in ("1", "2_a", "2_b"))
        assert up.shape[1] == down.shape[0] == rank
        wanted = 3 / 2 * torch.kron(left, up @ down)
        torch.testing.assert_close(deltas[f"{block}.{end}"], wanted, rtol=0, atol=1e-6)


def test_targets_select_layers_of_the_denoiser_by_suffix(tiny_base: Path) -> None:
    config = _config("lora", adapter={"targets": ["attn2.to_k", "conv1"]})
    trained = adapters.prepare(FAMILY, FAMILY.load(tiny_base), config)
    layers = {name.split(".lora_")[0] for name in trained["unet"]}
    assert layers
    assert {name.endswith((".attn2.to_k", ".conv1")) for name in layers} == {True}
    assert {name.split(".")[-1] for name in layers} == {"to_k", "conv1"}
    assert any("q_proj" in name for name in trained["text_encoder"])


@pytest.mark.parametrize(
    ("targets", "closest"), [(["to_qq"], "to_q"), (["to_out"], r"to_out\.0"), (["attn1"], "attn1")]
)
def test_targets_without_a_matching_layer(
    tiny_base: Path, targets: list[str], closest: str
) -> None:
    config = _config("lora", adapter={"targets": ["to_k", *targets]})
    with pytest.raises(ConfigError, match=rf"{targets[0]} .*UNet2DConditionModel.*{closest}"):
        adapters.prepare(FAMILY, FAMILY.load(tiny_base), config)


@pytest.mark.parametrize("pattern", ["to_z", "to_[q"])
def test_ranks_without_a_matching_layer(tiny_base: Path, pattern: str) -> None:
    config = _config("lora", adapter={"ranks": {"to_q": 2, pattern: 2}})
    with pytest.raises(ConfigError, match=r"adapter\.ranks: to_(z|\[q)"):
        adapters.prepare(FAMILY, FAMILY.load(tiny_base), config)


def test_an_adapter_of_another_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    config = _config("lora", train={"text_encoder": False})
    adapters.export(FAMILY, _trained(tiny_base, config), config, tiny_base, tmp_path)
    file = tmp_path / adapters.LORA_FILE
    state, texts = safetensors_files.read(file)
    broken = {
        "a layer too many": {**state, "unet.nowhere.to_q.lora_A.weight": torch.zeros(4, 32)},
        "a layer too few": dict(list(state.items())[1:]),
        "a wrong width": {name: weight[..., 1:] for name, weight in state.items()},
        "another component": {f"prior.{name}": weight for name, weight in state.items()},
    }
    for tensors in broken.values():
        safetensors_files.write(file, tensors, texts)
        with pytest.raises(ModelError, match="adapter"):
            adapters.apply(FAMILY, FAMILY.load(tiny_base), tmp_path)
    safetensors_files.write(file, state, {})
    with pytest.raises(ModelError, match="no valid adapter setting"):
        adapters.apply(FAMILY, FAMILY.load(tiny_base), tmp_path)


def _bases() -> list[str]:
    """The families with a tiny base in the tests."""
    folder = Path(__file__).parents[2] / "tiny_bases"
    names = plugins.names("dreambooth_core.diffusion.families")
    return [name for name in names if (folder / f"{load_family(name).pipeline_class}.py").is_file()]


@pytest.mark.parametrize("name", _bases())
def test_every_familys_pipeline_reads_its_lora(name: str, tmp_path: Path) -> None:
    family: Family = load_family(name)
    builder = importlib.import_module(f"tests.tiny_bases.{family.pipeline_class}")
    base = builder.build(tmp_path / "base")
    config = _config("lora", model={"family": name})
    parts = family.load(base)
    trained = adapters.prepare(family, parts, config)
    _perturb(trained)
    adapters.export(family, parts, config, base, tmp_path / "weights")
    slots = inspect.signature(getattr(diffusers, family.pipeline_class).save_lora_weights)
    assert all(f"{component}_lora_layers" in slots.parameters for component in trained)

    pipeline = family.pipeline(family.load(base))
    pipeline.load_lora_weights(tmp_path / "weights", weight_name=adapters.LORA_FILE)
    merged = adapters.apply(family, family.load(base), tmp_path / "weights")
    for component, weights in trained.items():
        theirs = getattr(pipeline, component)
        loaded = {
            key.replace(".default_0.", ".default."): weight
            for key, weight in theirs.named_parameters()
        }
        for key, weight in weights.items():
            assert torch.equal(loaded[key], weight)
        layer = next(iter(weights)).split(".lora_")[0]
        adapted = theirs.get_submodule(layer)
        wanted = adapted.base_layer.weight + adapted.get_delta_weight("default_0")
        torch.testing.assert_close(merged[component].get_submodule(layer).weight, wanted)


@pytest.mark.parametrize("method", ["lora", "dora", "lokr"])
def test_merging_for_a_while_changes_no_weight(tiny_base: Path, method: str) -> None:
    parts = _trained(tiny_base, _config(method))
    before = {name: value.clone() for name, value in parts["unet"].state_dict().items()}
    places = {name: value.data_ptr() for name, value in parts["unet"].named_parameters()}
    expected = _prediction(parts)
    with adapters.merged(FAMILY, parts):
        assert not torch.equal(
            parts["unet"].state_dict()[_adapted_weight(parts)], before[_adapted_weight(parts)]
        )
        torch.testing.assert_close(_prediction(parts), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(_prediction(parts), expected)
    after = parts["unet"].state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert {name: value.data_ptr() for name, value in parts["unet"].named_parameters()} == places


def test_copies_that_need_too_much_memory_are_not_made(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_layers, "MERGE_BYTES", 1)
    parts = _trained(tiny_base, _config("lora"))
    before = parts["unet"].state_dict()[_adapted_weight(parts)].clone()
    with adapters.merged(FAMILY, parts):
        assert torch.equal(parts["unet"].state_dict()[_adapted_weight(parts)], before)


def _adapted_weight(parts: Parts) -> str:
    return next(name for name in parts["unet"].state_dict() if name.endswith("base_layer.weight"))
