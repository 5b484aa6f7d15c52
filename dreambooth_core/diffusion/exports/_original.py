"""diffusers' layer names -> names of the original Stable Diffusion code.

A table maps layer -> original layer for a config with any number of levels; an entry for a block
covers all of its layers that keep their names. The original UNet numbers its blocks consecutively:
one per resnet with its attention, and one per downsampling.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dreambooth_core.diffusion.exports._lora import Layer
from dreambooth_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Table = dict[str, str]
State = Mapping[str, "Tensor"]

_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPENCLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_table(config: Mapping[str, Any]) -> Table:
    """Layers of a `UNet2DConditionModel` with this config."""
    counts = _per_level(config["layers_per_block"], len(config["block_out_channels"]))
    attends = ["CrossAttn" in kind for kind in config["up_block_types"]]
    table = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.attentions.0": "middle_block.1",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        **_unet_resnet("mid_block.resnets.0", "middle_block.0"),
        **_unet_resnet("mid_block.resnets.1", "middle_block.2"),
    }
    block = 1
    for level, count in enumerate(counts):
        for index in range(count):
            table |= _unet_pair(f"down_blocks.{level}", index, f"input_blocks.{block}")
            block += 1
        table[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
        block += 1
    block = 0
    for level, count in enumerate(reversed(counts)):
        for index in range(count + 1):
            table |= _unet_pair(f"up_blocks.{level}", index, f"output_blocks.{block}")
            block += 1
        position = 2 if attends[level] else 1
        table[f"up_blocks.{level}.upsamplers.0"] = f"output_blocks.{block - 1}.{position}"
    return table


def vae_table(config: Mapping[str, Any]) -> Table:
    """Layers of an `AutoencoderKL`; the original numbers decoder levels in reverse."""
    levels = len(config["block_out_channels"])
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        table |= {f"{half}.{name}": f"{half}.{name}" for name in ("conv_in", "conv_out")}
        table[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        for index in (0, 1):
            table |= _vae_resnet(
                f"{half}.mid_block.resnets.{index}", f"{half}.mid.block_{index + 1}"
            )
        for name, original in _VAE_ATTENTION.items():
            table[f"{half}.mid_block.attentions.0.{name}"] = f"{half}.mid.attn_1.{original}"
    for level in range(levels):
        sides = {"encoder.down": level, "decoder.up": levels - 1 - level}
        for side, original_level in sides.items():
            change = "downsample" if side.endswith("down") else "upsample"
            ours, theirs = f"{side}_blocks.{level}", f"{side}.{original_level}"
            table[f"{ours}.{change}rs.0"] = f"{theirs}.{change}"
            for index in range(config["layers_per_block"] + 1):
                table |= _vae_resnet(f"{ours}.resnets.{index}", f"{theirs}.block.{index}")
    return table


def openclip_table(config: Mapping[str, Any]) -> Table:
    """Layers of a CLIP text encoder, without prefix `text_model.` and without the fused q, k, v."""
    table = {
        "embeddings.token_embedding": "token_embedding",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm": "ln_final",
        "text_projection.weight": "text_projection",
    }
    for index in range(config["num_hidden_layers"]):
        for name, original in _OPENCLIP_LAYER.items():
            table[f"encoder.layers.{index}.{name}"] = f"transformer.resblocks.{index}.{original}"
    return table


def rename(name: str, table: Table) -> str:
    """Original name of a weight or layer; raises `ConfigError` when the table has none."""
    words = name.split(".")
    for end in range(len(words), 0, -1):
        original = table.get(".".join(words[:end]))
        if original:
            return ".".join([original, *words[end:]])
    raise ConfigError(
        f"the original format has no name for {name}; export this base with --format diffusers"
    )


def renamed(layers: Iterable[Layer], config: Mapping[str, Any]) -> tuple[Layer, ...]:
    """Adapter layers with original names for those of a UNet with this config."""
    table = unet_table(config)
    return tuple(
        replace(layer, module=rename(layer.module, table)) if layer.component == "unet" else layer
        for layer in layers
    )


def unet_tensors(state: State, config: Mapping[str, Any]) -> dict[str, "Tensor"]:
    table = unet_table(config)
    return {rename(name, table): tensor for name, tensor in state.items()}


def vae_tensors(state: State, config: Mapping[str, Any]) -> dict[str, "Tensor"]:
    """Attention weights become 1x1 convolutions: (out, in) -> (out, in, 1, 1)."""
    table = vae_table(config)
    flat = {rename(name, table): tensor for name, tensor in state.items()}
    return {
        name: tensor[..., None, None] if ".attn_1." in name and tensor.ndim == 2 else tensor
        for name, tensor in flat.items()
    }


def clip_tensors(state: State) -> dict[str, "Tensor"]:
    """OpenAI's CLIP with transformers' names of 2022, including the buffer `position_ids`."""
    import torch

    names = _of_clip(state)
    tensors = {f"text_model.{name}": tensor for name, tensor in names.items()}
    count = len(names["embeddings.position_embedding.weight"])
    tensors["text_model.embeddings.position_ids"] = torch.arange(count)[None]
    return tensors


def openclip_tensors(state: State, config: Mapping[str, Any]) -> dict[str, "Tensor"]:
    """OpenCLIP: q, k and v are concatenated, and the projection is transposed."""
    import torch

    names, table = _of_clip(state), openclip_table(config)
    tensors = {}
    for name, tensor in names.items():
        before, projection, kind = name.rpartition("_proj.")
        if projection and before.endswith(("self_attn.k", "self_attn.v")):
            continue
        if projection and before.endswith("self_attn.q"):
            block = before.removesuffix("self_attn.q")
            index = block.removeprefix("encoder.layers.")
            fused = [names[f"{block}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"transformer.resblocks.{index}attn.in_proj_{kind}"] = torch.cat(fused)
        else:
            tensors[rename(name, table)] = tensor
    if "text_projection" in tensors:
        tensors["text_projection"] = tensors["text_projection"].T
    return tensors


def _of_clip(state: State) -> dict[str, "Tensor"]:
    return {name.removeprefix("text_model."): tensor for name, tensor in state.items()}


def _per_level(count: int | list[int], levels: int) -> list[int]:
    return [count] * levels if isinstance(count, int) else list(count)


def _unet_pair(level: str, index: int, block: str) -> Table:
    attention = {f"{level}.attentions.{index}": f"{block}.1"}
    return {**_unet_resnet(f"{level}.resnets.{index}", f"{block}.0"), **attention}


def _unet_resnet(ours: str, theirs: str) -> Table:
    return {f"{ours}.{name}": f"{theirs}.{original}" for name, original in _UNET_RESNET.items()}


def _vae_resnet(ours: str, theirs: str) -> Table:
    return {ours: theirs, f"{ours}.conv_shortcut": f"{theirs}.nin_shortcut"}
