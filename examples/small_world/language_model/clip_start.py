"""Start weights of the small vision-language model's image encoder: those of the shipped CLIP.

GLM's encoder differs from CLIP's: no class token (patches hardly attend to it), root mean square instead
of layer normalisation, gated linear units instead of GELU, rotary positions, no biases in the MLP. Each
is expressed by folded weights; a constant, which biases need, is fitted as a linear function of the
normalised states (about 10 % error).
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from examples.small_world.language_model import image_encoder
from examples.small_world.language_model.pictures import pair, photo

IMAGES = 96
"""Renders on which the constants are fitted."""
RIDGE = 0.3
GELU_SHARE = 0.7
"""Share of the MLP's units that are units of CLIP; the rest are linear."""
QUICK_GELU = 1.702
"""quick_gelu(x) = x * sigmoid(1.702 x)"""
FLAT = 4.0
"""Bias of the patch embedding relative to its outputs: makes their normalisation nearly constant."""
CONSTANT = 10.0
"""Value of the hidden unit that carries the MLP's output bias."""


@torch.no_grad()
def start_from_clip(visual: Any, folder: Path) -> None:
    """Set the image encoder's weights, except those of the merger and the layer before it."""
    from transformers import CLIPModel

    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval().vision_model
    rng = random.Random("start")
    pixels = np.stack([(photo if n % 4 else pair)(rng).pixels for n in range(IMAGES)])
    hidden = _start_embeddings(visual, clip, pixels)
    _, turns = image_encoder.positions(visual, hidden)
    for block, layer in zip(visual.blocks, clip.encoder.layers, strict=False):
        block.norm1.weight.fill_(1)
        block.norm2.weight.fill_(1)
        _start_attention(block.attn, layer)
        normed = image_encoder.norm(block.norm1, hidden)
        hidden = hidden + image_encoder.attended(block.attn, normed, turns)
        normed = image_encoder.norm(block.norm2, hidden)
        _start_mlp(block.mlp, layer, normed)
        hidden = hidden + block.mlp(normed)
    visual.post_layernorm.weight.fill_(1)


def _start_embeddings(visual: Any, clip: Any, pixels: NDArray[np.uint8]) -> Tensor:
    """Set the embeddings; returns the states before the first block, (n, 64, width)."""
    given, norm = clip.embeddings, clip.pre_layrnorm
    embed = visual.patch_embed.proj
    centred = _centred(given.patch_embedding.weight)
    embed.weight.copy_(
        centred[:, :, None].expand_as(embed.weight) / 2
    )  # an image is two equal frames
    embed.bias.zero_()
    raw = torch.nn.functional.linear(image_encoder.patches(pixels), embed.weight.flatten(1))
    flat = FLAT * raw.pow(2).mean().sqrt()
    embed.bias.fill_(flat)
    places = _centred(given.position_embedding.weight[1:].T).T
    order, _ = image_encoder.positions(visual, raw)
    summed = raw.view(len(pixels), -1, raw.shape[-1]) + places[order]
    scale = norm.weight / summed.pow(2).mean(-1).sqrt().mean()
    length = (raw.pow(2).mean(-1) + flat**2).sqrt().mean()
    visual.post_conv_layernorm.weight.copy_(scale * length)
    visual.embeddings.position_embedding.weight.copy_(scale * (places - flat) + norm.bias)
    return image_encoder.embedded(visual, pixels)


def _start_attention(attention: Any, layer: Any) -> None:
    """Query, key and value with the norm's weight and bias folded in; the output without a bias."""
    given, norm = layer.self_attn, layer.layer_norm1
    folded = {}
    for name in ("q_proj", "k_proj", "v_proj"):
        linear = getattr(given, name)
        folded[name] = (_read(linear.weight, norm), linear.bias + linear.weight @ norm.bias)
    heads, width = given.num_heads, given.head_dim
    parts: dict[str, list[Tensor]] = {"q": [], "k": []}
    for head in range(heads):
        rows = slice(head * width, (head + 1) * width)
        q, k = (
            torch.cat((folded[name][0][rows], folded[name][1][rows, None]), 1)
            for name in ("q_proj", "k_proj")
        )
        left, values, right = torch.linalg.svd(q.T @ k, full_matrices=False)
        # the rotary embedding turns these dimensions: they get nothing
        turned = (0, width // 4, width // 2, 3 * width // 4)
        still = [d for d in range(width) if d not in turned]
        root = values[: len(still)].sqrt()[:, None]
        for name, side in (("q", left.T), ("k", right)):
            made = torch.zeros(width, side.shape[1])
            made[still] = root * side[: len(still)]
            parts[name].append(made)
    q, k = (torch.cat(parts[name]) for name in ("q", "k"))
    value, value_bias = folded["v_proj"]
    out = _centred(given.out_proj.weight)
    wanted = out @ value_bias + _centred(given.out_proj.bias)
    value_bias = torch.linalg.lstsq(out, wanted[:, None], driver="gelsd").solution[:, 0]
    attention.qkv.weight.copy_(torch.cat((q[:, :-1], k[:, :-1], value)))
    attention.qkv.bias.copy_(torch.cat((q[:, -1], k[:, -1], value_bias)))
    attention.proj.weight.copy_(out)


def _start_mlp(mlp: Any, layer: Any, normed: Tensor) -> None:
    """Approximate CLIP's MLP of 768 units: its strongest units, linear units, and one for the bias.

    `normed`: normalised states (n, 64, width), on which the output weights are fitted.
    """
    first, second, norm = layer.mlp.fc1, layer.mlp.fc2, layer.layer_norm2
    constant, rows = _constant(normed), normed.flatten(0, 1)
    bias = first.bias + first.weight @ norm.bias
    weight = _read(first.weight, norm) + bias[:, None] * constant
    drawn = rows @ weight.T
    active = drawn * (QUICK_GELU * drawn).sigmoid() * (rows @ constant)[:, None]
    out = _centred(second.weight)
    wanted = active @ out.T + _centred(second.bias)
    size = mlp.gate_proj.weight.shape[0]
    units = int(GELU_SHARE * size)
    linear = size - units - 1
    strong = (active.var(0) * out.pow(2).sum(0)).topk(units).indices
    inputs = torch.cat((active[:, strong], rows, torch.ones(len(rows), 1)), 1)
    ridge = 0.01 * torch.eye(inputs.shape[1]) * len(rows) ** 0.5
    fitted = torch.linalg.lstsq(
        torch.cat((inputs, ridge)), torch.cat((wanted, torch.zeros(len(ridge), len(out))))
    ).solution
    straight = fitted[units:-1]
    # the directions of the linear part with the largest outputs
    right = torch.linalg.svd(rows @ straight, full_matrices=False).Vh
    kept = right[:linear]
    mlp.gate_proj.weight.copy_(
        torch.cat((QUICK_GELU * weight[strong], (CONSTANT * constant).expand(linear + 1, -1)))
    )
    mlp.up_proj.weight.copy_(
        torch.cat(
            (
                (constant / QUICK_GELU).expand(units, -1),
                kept @ straight.T,
                constant[None],
            )
        )
    )
    mlp.down_proj.weight.copy_(
        torch.cat((fitted[:units], kept / CONSTANT, fitted[-1:] / CONSTANT)).T
    )


def _constant(normed: Tensor) -> Tensor:
    """Weights whose product with normalised states (n, 64, width) is about 1, by ridge regression."""
    rows = normed.flatten(0, 1)
    width = rows.shape[1]
    left = torch.cat((rows, RIDGE * torch.eye(width)))
    right = torch.cat((torch.ones(len(rows), 1), torch.zeros(width, 1)))
    return torch.linalg.lstsq(left, right).solution[:, 0]  # type: ignore[no-any-return]


def _read(weight: Tensor, norm: Any) -> Tensor:
    """The weight of a layer after layer normalisation, for states that are not centred."""
    scaled: Tensor = weight * norm.weight
    return scaled - scaled.mean(1, keepdim=True)


def _centred(weight: Tensor) -> Tensor:
    """A weight whose outputs (first dimension) have mean 0."""
    return weight - weight.mean(0, keepdim=True)
