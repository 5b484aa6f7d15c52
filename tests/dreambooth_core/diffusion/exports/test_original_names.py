"""All names of the original checkpoints, derived from the structure of the original code.

The lists follow the original model code (`ldm` and `sgm`: openaimodel's
`input_blocks` counter, the autoencoder's `down.i.block.j`). Their sizes equal those of
the published files: 686 + 248 + 197 = 1131 in v1-5-pruned, and 1680 + 248 + 197 + 389 in
sd_xl_base_1.0, whose 2515th is a `logit_scale`, which is not in diffusers' folders.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from dreambooth_core.diffusion.exports import _original
from dreambooth_core.errors import ConfigError

BOTH = ("weight", "bias")
SD1 = {"cross_attention_dim": 768}
SD2 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SDXL = {
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


def _with(names: list[str]) -> set[str]:
    return {f"{name}.{kind}" for name in names for kind in BOTH}


def _resnet(block: str, widens: bool) -> set[str]:
    inner = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
    return _with([f"{block}.{name}" for name in [*inner, *["skip_connection"] * widens]])


def _transformer(block: str, depth: int) -> set[str]:
    names = _with([f"{block}.{name}" for name in ("norm", "proj_in", "proj_out")])
    for index in range(depth):
        inside = f"{block}.transformer_blocks.{index}"
        names |= {f"{inside}.attn{n}.to_{x}.weight" for n in (1, 2) for x in "qkv"}
        layers = [*(f"attn{n}.to_out.0" for n in (1, 2)), "ff.net.0.proj", "ff.net.2"]
        names |= _with([f"{inside}.{x}" for x in [*layers, "norm1", "norm2", "norm3"]])
    return names


def _unet(channels: tuple[int, ...], depths: tuple[int, ...], label: bool) -> set[str]:
    """As openaimodel.UNetModel appends its blocks, with two resnets a level."""
    names = _with(["time_embed.0", "time_embed.2", "out.0", "out.2", "input_blocks.0.0"])
    names |= _with(["label_emb.0.0", "label_emb.0.2"]) if label else set()
    skips, width, block = [channels[0]], channels[0], 1
    for level, wide in enumerate(channels):
        for _ in range(2):
            names |= _resnet(f"input_blocks.{block}.0", width != wide)
            names |= (
                _transformer(f"input_blocks.{block}.1", depths[level]) if depths[level] else set()
            )
            width = wide
            skips.append(width)
            block += 1
        if level < len(channels) - 1:
            names |= _with([f"input_blocks.{block}.0.op"])
            skips.append(width)
            block += 1
    names |= _resnet("middle_block.0", False) | _resnet("middle_block.2", False)
    deepest = depths[-1] or 1  # the middle block has attention also where its level has none
    names |= _transformer("middle_block.1", deepest)
    block = 0
    for level in reversed(range(len(channels))):
        for index in range(3):
            skips.pop()
            names |= _resnet(f"output_blocks.{block}.0", True)
            names |= (
                _transformer(f"output_blocks.{block}.1", depths[level]) if depths[level] else set()
            )
            if level and index == 2:
                names |= _with([f"output_blocks.{block}.{2 if depths[level] else 1}.conv"])
            block += 1
    return names


def _vae() -> set[str]:
    names = _with(["quant_conv", "post_quant_conv"])
    widths = (128, 256, 512, 512)
    for half, count in (("encoder", 2), ("decoder", 3)):
        names |= _with([f"{half}.{x}" for x in ("conv_in", "conv_out", "norm_out")])
        attention = [f"mid.attn_1.{x}" for x in ("norm", "q", "k", "v", "proj_out")]
        blocks = ["mid.block_1", "mid.block_2"]
        side = "down" if half == "encoder" else "up"
        levels = range(4)
        blocks += [f"{side}.{level}.block.{index}" for level in levels for index in range(count)]
        inner = [f"{block}.{x}" for block in blocks for x in ("norm1", "conv1", "norm2", "conv2")]
        before = {"down": lambda n: max(n - 1, 0), "up": lambda n: min(n + 1, 3)}[side]
        widen = [n for n in levels if widths[before(n)] != widths[n]]
        inner += [f"{side}.{level}.block.0.nin_shortcut" for level in widen]
        change = {"down": ((0, 1, 2), "downsample"), "up": ((1, 2, 3), "upsample")}[side]
        inner += [f"{side}.{level}.{change[1]}.conv" for level in change[0]]
        names |= _with([f"{half}.{name}" for name in [*attention, *inner]])
    return names


def _clip_l() -> set[str]:
    top = "text_model."
    layers = [f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")]
    layers += ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
    embeddings = ("position_ids", "position_embedding.weight", "token_embedding.weight")
    return (
        {f"{top}embeddings.{name}" for name in embeddings}
        | _with([f"{top}final_layer_norm"])
        | _with([f"{top}encoder.layers.{n}.{name}" for n in range(12) for name in layers])
    )


def _openclip(layers: int, projection: bool) -> set[str]:
    names = {"positional_embedding", "token_embedding.weight"} | _with(["ln_final"])
    names |= {"text_projection"} if projection else set()
    inner = ["ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"]
    for index in range(layers):
        block = f"transformer.resblocks.{index}"
        names |= _with([f"{block}.{name}" for name in inner])
        names |= {f"{block}.attn.in_proj_{kind}" for kind in BOTH}
    return names


@pytest.fixture(autouse=True)
def _on_meta() -> Iterator[None]:
    with torch.device("meta"):
        yield


@pytest.mark.parametrize(
    ("options", "channels", "depths", "count"),
    [
        (SD1, (320, 640, 1280, 1280), (1, 1, 1, 0), 686),
        (SD2, (320, 640, 1280, 1280), (1, 1, 1, 0), 686),
        (SDXL, (320, 640, 1280), (0, 2, 10), 1680),
    ],
    ids=["sd1", "sd2", "sdxl"],
)
def test_unet(
    options: dict[str, Any], channels: tuple[int, ...], depths: tuple[int, ...], count: int
) -> None:
    unet = UNet2DConditionModel(**options)
    tensors = _original.unet_tensors(unet.state_dict(), unet.config)
    assert tensors.keys() == _unet(channels, depths, label=options is SDXL)
    assert len(tensors) == len(unet.state_dict()) == count


def test_other_numbers_of_resnets() -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64, 64),
        layers_per_block=(1, 3, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    tensors = _original.unet_tensors(unet.state_dict(), unet.config)
    assert len(tensors) == len(unet.state_dict())
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    downs = [name for name in shapes if name.endswith("op.weight")]
    assert downs == ["input_blocks.2.0.op.weight", "input_blocks.6.0.op.weight"]
    assert [name for name in shapes if name.endswith(".conv.weight")] == [
        "output_blocks.2.1.conv.weight",
        "output_blocks.6.2.conv.weight",
    ]
    assert "output_blocks.9.0.in_layers.0.weight" not in shapes
    assert shapes["output_blocks.8.0.out_layers.3.weight"] == (32, 32, 3, 3)


def test_vae() -> None:
    vae = AutoencoderKL(**VAE)
    tensors = _original.vae_tensors(vae.state_dict(), vae.config)
    assert tensors.keys() == _vae()
    assert len(tensors) == len(vae.state_dict()) == 248
    for half in ("encoder", "decoder"):
        for name in ("q", "k", "v", "proj_out"):
            assert tensors[f"{half}.mid.attn_1.{name}.weight"].shape == (512, 512, 1, 1)
        assert tensors[f"{half}.mid.attn_1.norm.weight"].shape == (512,)


def test_clip() -> None:
    encoder = CLIPTextModel(CLIPTextConfig(hidden_size=768, num_attention_heads=12))
    tensors = _original.clip_tensors(encoder.state_dict())
    assert tensors.keys() == _clip_l()
    assert len(tensors) == 197
    assert tensors["text_model.embeddings.position_ids"].shape == (1, 77)


@pytest.mark.parametrize(("layers", "projection"), [(23, False), (32, True)], ids=["sd2", "sdxl"])
def test_openclip(layers: int, projection: bool) -> None:
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    config = CLIPTextConfig(
        hidden_size=64, num_hidden_layers=layers, num_attention_heads=4, projection_dim=48
    )
    state = kind(config).state_dict()
    tensors = _original.openclip_tensors(state, config.to_dict())
    assert tensors.keys() == _openclip(layers, projection)
    assert tensors["transformer.resblocks.0.attn.in_proj_weight"].shape == (192, 64)
    if projection:
        assert len(tensors) == 389
        assert tensors["text_projection"].shape == (64, 48)


def test_layers_without_an_original_name_are_refused() -> None:
    table = _original.unet_table({**SD1, **UNet2DConditionModel().config})
    with pytest.raises(ConfigError, match=r"no name for mid_block\.motion\.0; .*diffusers"):
        _original.rename("mid_block.motion.0", table)
