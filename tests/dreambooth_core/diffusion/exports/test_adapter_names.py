"""Adapter layers have the names that kohya's and ComfyUI's loaders read, with equal effect."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dreambooth_core.diffusion import exports
from dreambooth_core.diffusion.exports import TrainedModel, _flux, lora_kohya
from dreambooth_core.diffusion.exports._base import base_of
from dreambooth_core.diffusion.exports._lora import Layer
from dreambooth_core.diffusion.exports._merged import merged
from dreambooth_core.diffusion.exports.single_file import checkpoint
from dreambooth_core.diffusion.families import Parts, load_family
from dreambooth_core.errors import ConfigError
from tests.dreambooth_core.diffusion.exports.trained import trained
from tests.tiny_bases import StableDiffusionPipeline, StableDiffusionXLPipeline

ALL = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
BASES = {"stable_diffusion": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, TrainedModel]:
    """Adapters on all layers that kohya trains in a UNet, some with another rank."""
    folder = tmp_path_factory.mktemp("adapters")
    adapter = {"rank": 4, "alpha": 6, "targets": ALL, "ranks": {r"attn2\.to_k": 2}}
    return {
        family: trained(
            family, base.build(folder / family), "lora", folder / f"{family}-lora", adapter=adapter
        )
        for family, base in BASES.items()
    }


def _kohya_rule(root: nn.Module, prefix: str, inside: tuple[str, ...]) -> set[str]:
    """Linear layers and 1x1 convolutions below modules of some classes, `_` for every dot."""
    return {
        f"{prefix}_{name}_{child}".replace(".", "_")
        for name, module in root.named_modules()
        if type(module).__name__ in inside
        for child, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
        or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
    }


def _text_rule(encoder: nn.Module, prefix: str) -> set[str]:
    """Kohya's rule for the attention layers of a CLIP, with the prefix `text_model`."""
    inside = ("CLIPAttention", "CLIPSdpaAttention")
    return {
        name if "_text_model_" in name else name.replace(prefix, f"{prefix}_text_model", 1)
        for name in _kohya_rule(encoder, prefix, inside)
    }


def _tensors(name: str, source: TrainedModel, out: Path) -> dict[str, Tensor]:
    return load_file(exports.export(name, source, out)[0])


def _parts(source: TrainedModel) -> Parts:
    return load_family(source.family).load(source.base)


def _modules(tensors: Mapping[str, Tensor], down: str) -> set[str]:
    return {name.removesuffix(down) for name in tensors if name.endswith(down)}


def test_kohya_finds_every_layer_of_sd(sources: Mapping[str, TrainedModel], tmp_path: Path) -> None:
    source = sources["stable_diffusion"]
    parts, tensors = _parts(source), _tensors("lora_kohya", source, tmp_path)
    wanted = _kohya_rule(parts["unet"], "lora_unet", ("Transformer2DModel",))
    wanted |= _text_rule(parts["text_encoder"], "lora_te")
    assert _modules(tensors, ".lora_down.weight") == wanted
    assert "lora_unet_down_blocks_1_attentions_0_proj_in" in wanted
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj" in wanted


def test_kohya_finds_every_layer_of_sdxl(
    sources: Mapping[str, TrainedModel], tmp_path: Path
) -> None:
    """Kohya's own SDXL has the original names: those of the checkpoint's transformers."""
    source = sources["sdxl"]
    parts, tensors = _parts(source), _tensors("lora_kohya", source, tmp_path)
    matrices = {
        name.removeprefix(PREFIX).removesuffix(".weight")
        for name, tensor in checkpoint(parts, base_of(source.base)).items()
        if name.startswith(PREFIX) and tensor.ndim == 2
    }
    of_transformers = {name for name in matrices if "_block" in name and ".emb_layers." not in name}
    wanted = {f"lora_unet_{name}".replace(".", "_") for name in of_transformers}
    wanted |= _text_rule(parts["text_encoder"], "lora_te1")
    wanted |= _text_rule(parts["text_encoder_2"], "lora_te2")
    assert _modules(tensors, ".lora_down.weight") == wanted
    assert "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q" in wanted


@pytest.mark.parametrize("family", BASES)
def test_every_layer_has_both_factors_and_its_alpha(
    family: str, sources: Mapping[str, TrainedModel], tmp_path: Path
) -> None:
    tensors = _tensors("lora_kohya", sources[family], tmp_path)
    layers = _modules(tensors, ".lora_down.weight")
    assert len(tensors) == 3 * len(layers)
    for layer in layers:
        rank = 2 if layer.endswith("attn2_to_k") else 4
        assert tensors[f"{layer}.lora_down.weight"].shape[0] == rank
        assert tensors[f"{layer}.lora_up.weight"].shape[1] == rank
        assert tensors[f"{layer}.alpha"].item() == rank * 6 / 4


def test_kohyas_metadata(sources: Mapping[str, TrainedModel], tmp_path: Path) -> None:
    written = exports.export("lora_kohya", sources["sdxl"], tmp_path)[0]
    with safe_open(written, framework="pt") as file:
        texts = file.metadata()
    assert texts["ss_base_model_version"] == "sdxl_base_v1-0"
    assert texts["ss_network_module"] == "networks.lora"
    assert texts["ss_network_dim"] == texts["ss_network_alpha"] == "Dynamic"
    assert texts["ss_v2"] == "False"


@pytest.mark.parametrize("family", BASES)
def test_comfy_names_and_factors_give_the_merged_model(
    family: str, sources: Mapping[str, TrainedModel], tmp_path: Path
) -> None:
    """ComfyUI's rule: a weight's name in its model, without `.weight`; alpha / rank * up @ down."""
    source = sources[family]
    base = base_of(source.base)
    before, after = checkpoint(_parts(source), base), checkpoint(merged(source), base)
    tensors = _tensors("lora_comfy", source, tmp_path)
    changed = 0
    for layer in _modules(tensors, ".lora_A.weight"):
        if not layer.startswith("diffusion_model."):
            continue
        down, up = tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]
        scale = tensors[f"{layer}.alpha"] / len(down)
        name = f"model.{layer}.weight"
        change = (up.flatten(1) @ down.flatten(1) * scale).reshape(before[name].shape)
        torch.testing.assert_close(before[name] + change, after[name])
        changed += 1
    assert changed == sum(not torch.equal(before[k], after[k]) for k in before if PREFIX in k)
    texts = {name for name in _modules(tensors, ".lora_A.weight") if name.startswith("text_")}
    encoders = {"stable_diffusion": ("clip_l",), "sdxl": ("clip_l", "clip_g")}[family]
    assert texts == {
        f"text_encoders.{encoder}.transformer.text_model.encoder.layers.{n}.self_attn.{x}_proj"
        for encoder in encoders
        for n in range(2)
        for x in ("q", "k", "v", "out")
    }


def _layer(module: str, inputs: int, outputs: int, alpha: float = 3.0) -> Layer:
    draws = torch.Generator().manual_seed(len(module))
    down = torch.randn(2, inputs, generator=draws)
    return Layer("transformer", module, down, torch.randn(outputs, 2, generator=draws), alpha)


def _change(down: Tensor, up: Tensor, alpha: float) -> Tensor:
    """A layer's change of the outputs for two inputs."""
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(down.shape[1], 2, generator=draws, dtype=torch.float64)
    return up.double() @ (down.double() @ inputs) * (alpha / len(down))


def test_fused_flux_layers_are_split_by_diffusers() -> None:
    """One block of each kind, of the real width, which diffusers' converter requires."""
    width, double, single = 3072, "transformer_blocks.0.", "single_transformer_blocks.0."
    layers = [
        *(
            _layer(f"{double}attn.{x}", width, width, alpha=n + 1)
            for n, x in enumerate(
                ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
            )
        ),
        *(_layer(f"{double}attn.{x}", width, width) for x in ("to_out.0", "to_add_out")),
        *(_layer(f"{single}attn.{x}", width, width) for x in ("to_q", "to_k", "to_v")),
        _layer(f"{single}proj_out", 5 * width, width),
    ]
    config = {"num_attention_heads": 24, "attention_head_dim": 128}
    fused = [
        Layer("lora_unet", layer.module, layer.down, layer.up, layer.alpha)
        for layer in _flux.fused(layers, config)
    ]
    tensors = lora_kohya.tensors_of(fused)
    assert _modules(tensors, ".lora_down.weight") == {
        *(
            f"lora_unet_double_blocks_0_{side}_attn_{x}"
            for side in ("img", "txt")
            for x in ("qkv", "proj")
        ),
        "lora_unet_single_blocks_0_linear1",
        "lora_unet_single_blocks_0_linear2",
    }
    assert tensors["lora_unet_single_blocks_0_linear1.lora_up.weight"].shape == (7 * width, 6)
    back = _convert_kohya_flux_lora_to_diffusers(dict(tensors))
    for layer in layers:
        down, up = (back[f"transformer.{layer.module}.lora_{x}.weight"] for x in "AB")
        expected = _change(layer.down, layer.up, layer.alpha)
        torch.testing.assert_close(_change(down, up, len(down)), expected, rtol=1e-5, atol=1e-4)
    down, up = (back[f"transformer.{single}proj_mlp.lora_{x}.weight"] for x in "AB")
    assert not _change(down, up, len(down)).any()


def test_a_layer_without_a_kohya_name_is_refused() -> None:
    config = {"num_attention_heads": 2, "attention_head_dim": 16}
    for module in ("x_embedder", "transformer_blocks.0.attn.norm_q"):
        with pytest.raises(ConfigError, match=f"no name for the layer {module}"):
            _flux.fused([_layer(module, 4, 4)], config)
