"""FLUX's original layer names for an adapter; several of diffusers' layers are fused there.

Layers with the same input are fused exactly: `down` matrices are concatenated, `up` matrices form a
block diagonal, and rows of layers without an adapter are zero.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dreambooth_core.diffusion.exports._lora import Layer
from dreambooth_core.errors import ConfigError

_DOUBLE = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
}
_DOUBLE_FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_SINGLE = {"proj_out": "linear2", "norm.linear": "modulation.lin"}
_SINGLE_FUSED = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}
_MLP_RATIO = 4
"""The same for every FLUX.1; not in diffusers' config."""


def fused(layers: Sequence[Layer], config: Mapping[str, Any]) -> tuple[Layer, ...]:
    """The transformer's layers with original names, fused; text encoder layers are unchanged.

    `config` is the transformer's. Raises `ConfigError` for a layer outside the blocks.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    found: list[Layer] = []
    groups: dict[tuple[str, tuple[str, ...]], dict[str, Layer]] = {}
    for layer in layers:
        if layer.component != "transformer":
            found.append(layer)
            continue
        block, name = _block(layer.module)
        plain, fusions = (_DOUBLE, _DOUBLE_FUSED) if "double" in block else (_SINGLE, _SINGLE_FUSED)
        fused_name = next((key for key, names in fusions.items() if name in names), None)
        if fused_name:
            groups.setdefault((f"{block}.{fused_name}", fusions[fused_name]), {})[name] = layer
        elif name in plain:
            found.append(replace(layer, module=f"{block}.{plain[name]}"))
        else:
            raise _unknown(layer.module)
    for (module, names), parts in groups.items():
        rows = [width * (_MLP_RATIO if name == "proj_mlp" else 1) for name in names]
        found.append(_stacked(module, [parts.get(name) for name in names], rows))
    return tuple(found)


def _block(module: str) -> tuple[str, str]:
    """`transformer_blocks.3.attn.to_q` -> `double_blocks.3`, `attn.to_q`."""
    match = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", module)
    if not match:
        raise _unknown(module)
    return f"{'single' if match[1] else 'double'}_blocks.{match[2]}", match[3]


def _stacked(module: str, parts: Sequence[Layer | None], rows: Sequence[int]) -> Layer:
    """Fuse layers with the same input and `rows` outputs each; None is a layer without adapter."""
    import torch

    adapted = [part for part in parts if part]
    scale = adapted[0].alpha / adapted[0].rank
    ups = [
        torch.zeros(count, 0) if part is None else part.up * (part.alpha / part.rank / scale)
        for part, count in zip(parts, rows, strict=True)
    ]
    down = torch.cat([part.down for part in adapted])
    up = torch.block_diag(*ups).to(down.dtype)  # type: ignore[no-untyped-call]
    return Layer("transformer", module, down, up, scale * len(down))


def _unknown(module: str) -> ConfigError:
    return ConfigError(
        f"kohya's format has no name for the layer {module} of FLUX; use --format lora_diffusers"
    )
