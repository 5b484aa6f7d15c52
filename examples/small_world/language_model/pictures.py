"""Images with their truth for the small vision-language model: single subjects, pairs, printed cards."""

import random
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from examples.small_world.render import SIZE, Box, render_array, subject_mask
from examples.small_world.shapes import CLASSES
from examples.small_world.world import (
    COLORS,
    Identity,
    Scene,
    random_identity,
    random_scene,
)

PATCH = 8
MERGE = 2
CELL = PATCH * MERGE
CELLS = SIZE // CELL
"""Visual tokens per row and column."""
DARK = {"blue", "purple", "brown", "black"}

Flaw = Literal["hidden", "cut_off", "watermark"]


class Shown(NamedTuple):
    """A subject in an image."""

    identity: Identity
    box: Box
    """Around its visible pixels."""
    cells: NDArray[np.float32]
    """(4, 4): share of each visual token's pixels that it covers."""


class Picture(NamedTuple):
    """An image and its truth."""

    pixels: NDArray[np.uint8]
    """(64, 64, 3)"""
    subjects: tuple[Shown, ...] = ()
    scene: Scene | None = None
    card: Identity | None = None
    """The subject whose properties are printed; cards show no subject."""
    lines: tuple[int, ...] = ()
    """Vertical middles of a card's lines, in pixels."""
    flaw: Flaw | None = None


def photo(rng: random.Random, identity: Identity | None = None) -> Picture:
    """A render of one subject."""
    identity = identity or random_identity(rng, rng.choice(list(CLASSES)))
    scene = random_scene(rng, accessory_share=0.35)
    mask = subject_mask(identity, scene)
    return Picture(render_array(identity, scene), (_shown(identity, mask),), scene)


def flawed(rng: random.Random, flaw: Flaw) -> Picture:
    """A photo with a grey bar before the subject, the subject cut off at an edge, or a watermark."""
    identity = random_identity(rng, rng.choice(list(CLASSES)))
    scene = random_scene(rng, accessory_share=0)
    if flaw == "cut_off":
        scene = scene._replace(x=rng.choice((-1, 1)) * rng.uniform(0.55, 0.8))
    mask = subject_mask(identity, scene)
    shown = _shown(identity, mask)
    image = Image.fromarray(render_array(identity, scene))
    draw = ImageDraw.Draw(image)
    if flaw == "watermark":
        place = (rng.randint(0, 8), rng.randint(2, 46))
        draw.text(
            place,
            "SAMPLE",
            (255, 255, 255),
            ImageFont.load_default(14),
            stroke_width=1,
            stroke_fill=(0, 0, 0),
        )
    if flaw == "hidden":
        left, _, right, _ = shown.box
        middle, half = (left + right) / 2 + rng.uniform(-8, 8), rng.uniform(5, 9)
        draw.rectangle((middle - half, 0, middle + half, SIZE), (120, 120, 124))
    return Picture(np.asarray(image), (shown,), scene, flaw=flaw)


def pair(rng: random.Random) -> Picture:
    """Two subjects on one background, beside or above each other; a third of them of one class."""
    nouns = rng.sample(list(CLASSES), 2)
    if rng.random() < 1 / 3:
        nouns[1] = nouns[0]
    identities = [random_identity(rng, noun) for noun in nouns]
    beside, gap = rng.random() < 0.5, rng.uniform(0.44, 0.5)
    base = random_scene(rng, accessory_share=0)
    scenes = []
    for side in (-1, 1):
        along, across = side * gap, rng.uniform(-0.15, 0.15)
        x, y = (along, across) if beside else (across, along)
        tilt, mirror = rng.gauss(0, 0.1), rng.random() < 0.5
        scale = rng.uniform(0.36, 0.46)
        scenes.append(base._replace(x=x, y=y, scale=scale, rotation=tilt, mirror=mirror))
    masks = [subject_mask(*one) for one in zip(identities, scenes, strict=True)]
    pixels = render_array(identities[0], scenes[0]).copy()
    second = render_array(identities[1], scenes[1])
    pixels[masks[1]] = second[masks[1]]
    visible = [masks[0] & ~masks[1], masks[1]]
    shown = tuple(_shown(one, mask) for one, mask in zip(identities, visible, strict=True))
    return Picture(pixels, shown, base)


def card(rng: random.Random) -> Picture:
    """A printed card: class noun, colour and pattern in three lines."""
    identity = random_identity(rng, rng.choice(list(CLASSES)))
    paper, ink = (255, 255, 255), (0, 0, 0)
    if rng.random() < 0.5:
        paper = COLORS[rng.choice([name for name in COLORS if name not in DARK])]
    image = Image.new("RGB", (SIZE, SIZE), paper)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    x, y = rng.randint(1, 4), rng.randint(0, 6)
    lines = []
    for line in (identity.class_noun, identity.color.name, identity.pattern):
        draw.text((x, y), line, ink, font)
        lines.append(y + 8)
        y += rng.randint(16, 19)
    return Picture(np.asarray(image), card=identity, lines=tuple(lines))


def another(rng: random.Random, identity: Identity) -> Identity:
    """Another subject: mostly of the same class, sometimes also of the same colour."""
    if rng.random() < 0.15:
        noun = rng.choice([noun for noun in CLASSES if noun != identity.class_noun])
        return random_identity(rng, noun)
    other = random_identity(rng, identity.class_noun)
    if rng.random() < 0.15:
        other = other._replace(color=identity.color)
    return other


def _shown(identity: Identity, mask: NDArray[np.bool_]) -> Shown:
    ys, xs = np.nonzero(mask)
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    cells = mask.reshape(CELLS, CELL, CELLS, CELL).mean((1, 3), dtype=np.float32)
    return Shown(identity, box, cells)
