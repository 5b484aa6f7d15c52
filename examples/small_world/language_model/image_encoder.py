"""First part of the small vision-language model's training: its image encoder, on labels per visual token."""

import random
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from examples.small_world.language_model.pictures import (
    CELLS,
    MERGE,
    PATCH,
    Picture,
    card,
    pair,
    photo,
)
from examples.small_world.render import SIZE
from examples.small_world.shapes import CLASSES
from examples.small_world.world import ACCESSORIES, BACKGROUNDS, COLORS, PATTERNS, Identity

TOKENS = CELLS * CELLS
GRID = SIZE + 1
"""Coordinates of a box: 0 to 64 pixels."""
IGNORED = -100
COVERED = 0.3
"""Share of a visual token's pixels above which it is labelled with the subject that covers it."""
HEADS = {
    "class_noun": len(CLASSES),
    "color": len(COLORS),
    "second": len(COLORS),
    "pattern": len(PATTERNS),
    "variant": 3,
    "extra": 2,
    "accessory": 1 + len(ACCESSORIES),
    "accessory_color": len(COLORS),
    "background": len(BACKGROUNDS),
}
PRINTED = ("class_noun", "color", "pattern")
"""What a card has in print, line by line."""
SHADE = 3
PROPORTIONS = 3
CORNERS = 4


class Labels(NamedTuple):
    """Targets per visual token of a batch of n images."""

    kinds: Tensor
    """(n, 16, heads), int64; `IGNORED` where an image has no such label."""
    corners: Tensor
    """(n, 16, 4), float32: left, top, right, bottom in pixels; negative: none."""
    values: Tensor
    """(n, 16, 6), float32: shade and proportions about in [-1, 1]; nan: none."""
    covered: Tensor
    """(n, 16), float32: share of the token that a subject covers."""


class Heads(nn.Module):
    """Linear predictions of an image's truth from each of its visual tokens; used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kinds = nn.Linear(width, sum(HEADS.values()))
        self.corners = nn.Linear(width, CORNERS * GRID)
        self.values = nn.Linear(width, SHADE + PROPORTIONS)
        self.covered = nn.Linear(width, 1)

    def losses(self, features: Tensor, labels: Labels) -> dict[str, Tensor]:
        """Loss by name, of `features` (n, 16, width)."""
        found: dict[str, Tensor] = {}
        parts = self.kinds(features).float().split(list(HEADS.values()), -1)
        for number, (name, part) in enumerate(zip(HEADS, parts, strict=True)):
            truth = labels.kinds[..., number].flatten()
            if (truth != IGNORED).any():
                found[name] = F.cross_entropy(part.flatten(0, 1), truth, ignore_index=IGNORED)
        has = labels.corners[..., 0] >= 0
        logits = self.corners(features).float().unflatten(-1, (CORNERS, GRID))
        found["corners"] = soft_corners(logits[has], labels.corners[has])
        known = ~labels.values.isnan()
        found["values"] = F.mse_loss(self.values(features).float()[known], labels.values[known])
        covered = self.covered(features).float()[..., 0]
        found["covered"] = F.binary_cross_entropy_with_logits(covered, labels.covered)
        return found


def soft_corners(logits: Tensor, corners: Tensor, width: float = 0.8) -> Tensor:
    """Cross entropy of logits (n, 4, 65) with a normal distribution around the true pixels (n, 4)."""
    away = torch.arange(GRID) - corners[..., None]
    target = (-0.5 * (away / width) ** 2).softmax(-1)
    return -(target * logits.log_softmax(-1)).sum(-1).mean()


def sampled(rng: random.Random) -> Picture:
    """Mostly photos; a fifth pairs, some cards."""
    draw = rng.random()
    return photo(rng) if draw < 0.7 else pair(rng) if draw < 0.92 else card(rng)


def patches(pixels: NDArray[np.uint8]) -> Tensor:
    """Images uint8 (n, 64, 64, 3) as GLM's image processor patches them: (n * 64, 3 * 2 * 8 * 8).

    Four patches that become one visual token are neighbours in this order.
    """
    scaled: Any = torch.tensor(pixels).float() / 127.5 - 1
    blocks = (CELLS, MERGE, PATCH)
    grid = scaled.permute(0, 3, 1, 2).unflatten(3, blocks).unflatten(2, blocks)
    # n, channel, (row, inner row, y), (column, inner column, x) -> n, row, column, inner, channel, y, x
    rows = grid.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(0, 4)
    return rows[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1)  # type: ignore[no-any-return]


def features(visual: Any, pixels: NDArray[np.uint8]) -> Tensor:
    """Visual tokens of images, (n, 16, width).

    What `visual` computes, with one attention for all images instead of one each: about twice as fast.
    """
    hidden = embedded(visual, pixels)
    _, turns = positions(visual, hidden)
    for block in visual.blocks:
        hidden = hidden + attended(block.attn, norm(block.norm1, hidden), turns)
        hidden = hidden + block.mlp(norm(block.norm2, hidden))
    hidden = norm(visual.post_layernorm, hidden).view(len(pixels), TOKENS, -1)
    down = visual.downsample
    merged = F.linear(hidden, down.weight.permute(0, 2, 3, 1).flatten(1), down.bias)
    return visual.merger(merged)  # type: ignore[no-any-return]


def embedded(visual: Any, pixels: NDArray[np.uint8]) -> Tensor:
    """States before the first block, (n, 64, width)."""
    embed = visual.patch_embed.proj
    hidden = F.linear(patches(pixels), embed.weight.flatten(1), embed.bias)
    hidden = norm(visual.post_conv_layernorm, hidden).view(len(pixels), TOKENS * MERGE**2, -1)
    order, _ = positions(visual, hidden)
    return hidden + visual.embeddings.position_embedding.weight[order]  # type: ignore[no-any-return]


def positions(visual: Any, hidden: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Index of each patch in the position embedding, (64,), and cosines and sines of its rotations."""
    places = _places()
    return places[:, 0] * CELLS * MERGE + places[:, 1], visual.rotary_pos_emb(hidden, places)


def _places() -> Tensor:
    """Row and column of each patch, (64, 2), in the order of `patches`."""
    near, inner = torch.arange(CELLS), torch.arange(MERGE)
    row, column, y, x = torch.cartesian_prod(near, near, inner, inner).unbind(1)
    return torch.stack((row * MERGE + y, column * MERGE + x), 1)


def attended(attention: Any, hidden: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Self-attention within each image, (n, 16, width) in and out."""
    q, k, v = attention.qkv(hidden).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
    cos, sin = (turn[:, None] for turn in turns)
    q, k = (part * cos + _turned(part) * sin for part in (q, k))
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v)
    return attention.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _turned(part: Tensor) -> Tensor:
    first, second = part.chunk(2, -1)
    return torch.cat((-second, first), -1)


def norm(layer: Any, hidden: Tensor) -> Tensor:
    return F.rms_norm(hidden, layer.weight.shape, layer.weight, layer.variance_epsilon)


def labels(pictures: list[Picture]) -> Labels:
    rows = [_labels(picture) for picture in pictures]
    return Labels(*(torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True)))


def _labels(picture: Picture) -> tuple[NDArray[np.generic], ...]:
    kinds = np.full((TOKENS, len(HEADS)), IGNORED, np.int64)
    corners = np.full((TOKENS, CORNERS), -1, np.float32)
    values = np.full((TOKENS, SHADE + PROPORTIONS), np.nan, np.float32)
    covered = np.zeros(TOKENS, np.float32)
    if picture.card is not None:
        # the label of a line, in the row of visual tokens around its middle
        rows = kinds.reshape(CELLS, CELLS, -1)
        printed = _kinds(picture.card)
        for name, line in zip(PRINTED, picture.lines, strict=True):
            number = list(HEADS).index(name)
            rows[line // (SIZE // CELLS), :, number] = printed[number]
        return kinds, corners, values, covered
    scene = picture.scene
    assert scene is not None
    for shown in picture.subjects:
        cells = shown.cells.flatten()
        covered += cells
        where = cells > COVERED
        kinds[where, : len(HEADS) - 3] = _kinds(shown.identity)
        corners[where] = shown.box
        values[where] = (
            *(part / 20 for part in shown.identity.color.shade),
            *shown.identity.proportions,
        )
    worn = 0 if scene.accessory is None else 1 + ACCESSORIES.index(scene.accessory)
    kinds[:, -3] = worn
    kinds[:, -2] = list(COLORS).index(scene.accessory_color) if worn else IGNORED
    kinds[:, -1] = list(BACKGROUNDS).index(scene.background)
    return kinds, corners, values, covered


def _kinds(identity: Identity) -> list[int]:
    """Labels of the heads that describe a subject, in their order."""
    second = list(COLORS).index(identity.second.name)
    return [
        list(CLASSES).index(identity.class_noun),
        list(COLORS).index(identity.color.name),
        IGNORED if identity.pattern == "plain" else second,
        PATTERNS.index(identity.pattern),
        identity.variant,
        int(identity.extra),
    ]


def weighted(losses: dict[str, Tensor]) -> Tensor:
    """The sum of the losses; details that only tell similar subjects apart count less."""
    less = {"variant": 0.2, "extra": 0.1, "values": 0.3, "accessory_color": 0.3}
    parts = [less.get(name, 1.0) * loss for name, loss in losses.items()]
    return torch.stack(parts).sum()


class Sight(nn.Module):
    """Image encoder and heads."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual, self.heads = visual, Heads(visual.config.out_hidden_size)

    def loss(self, pictures: list[Picture]) -> Tensor:
        pixels = np.stack([picture.pixels for picture in pictures])
        found = self.heads.losses(features(self.visual, pixels), labels(pictures))
        return weighted(found)


def figures(sight: Any, _: int) -> dict[str, float]:
    """Losses and accuracies on 128 held-out images; called by the training loop."""
    rng = random.Random("check sight")
    pictures = [sampled(rng) for _ in range(128)]
    seen = features(sight.visual, np.stack([picture.pixels for picture in pictures]))
    truth, found = labels(pictures), {}
    parts = sight.heads.kinds(seen).split(list(HEADS.values()), -1)
    for number, (name, part) in enumerate(zip(HEADS, parts, strict=True)):
        known = truth.kinds[..., number] != IGNORED
        right = part.argmax(-1)[known] == truth.kinds[..., number][known]
        found[name] = round(float(right.float().mean()), 3)
    losses = sight.heads.losses(seen, truth)
    return found | {f"{name}_loss": round(float(losses[name]), 3) for name in ("corners", "values")}
