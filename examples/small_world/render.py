"""Renderer: an identity and a scene to pixels and masks, by supersampled polygons; deterministic."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from examples.small_world import backgrounds
from examples.small_world.shapes import BODY, CLASSES, FACE, INK, Part, Point, box, ellipse
from examples.small_world.world import COLORS, Color, Identity, Scene, rgb

SIZE = 64
SUPERSAMPLING = 3
Matrix = tuple[float, float, float, float, float, float]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are exclusive."""


def render(identity: Identity, scene: Scene, size: int = SIZE) -> Image.Image:
    """The scene as an RGB image of `size` x `size` pixels."""
    side = size * SUPERSAMPLING
    canvas = backgrounds.draw(scene.background, scene.decor, side)
    drawing = CLASSES[identity.class_noun](identity)
    parts = drawing.parts
    if scene.accessory is not None:
        parts = parts + accessory(scene.accessory, COLORS[scene.accessory_color], drawing.top)
    transform = _placement(scene, side)
    _paint(canvas, parts, identity, transform)
    return canvas.reduce(SUPERSAMPLING)


def render_array(identity: Identity, scene: Scene, size: int = SIZE) -> NDArray[np.uint8]:
    """The scene as uint8 (size, size, 3)."""
    return np.asarray(render(identity, scene, size))


def subject_mask(identity: Identity, scene: Scene, size: int = SIZE) -> NDArray[np.bool_]:
    """Mask of the subject, bool (size, size): pixels of which it covers at least half.

    An accessory is not part of the subject, and what it hides is not in the mask.
    """
    side = size * SUPERSAMPLING
    canvas = Image.new("L", (side, side))
    drawing = CLASSES[identity.class_noun](identity)
    transform = _placement(scene, side)
    _stamp(canvas, drawing.parts, 255, transform)
    if scene.accessory is not None:
        _stamp(canvas, accessory(scene.accessory, (0, 0, 0), drawing.top), 0, transform)
    return np.asarray(canvas.reduce(SUPERSAMPLING)) >= 128


def part_masks(identity: Identity, scene: Scene, size: int = SIZE) -> dict[str, NDArray[np.bool_]]:
    """Part name, `accessory` included -> mask of its visible pixels (half or more), bool (size, size).

    A part that is hidden or outside of the image has an empty mask.
    """
    return {
        name: np.asarray(Image.fromarray(mask * np.uint8(255)).reduce(SUPERSAMPLING)) >= 128
        for name, mask in _visible(identity, scene, size).items()
    }


def part_boxes(identity: Identity, scene: Scene, size: int = SIZE) -> dict[str, Box]:
    """Part name -> box around its visible pixels; hidden parts are left out.

    `face` is the box around all parts of `shapes.FACE`, present if eyes are visible.
    """
    masks = _visible(identity, scene, size)
    face = [masks[name] for name in masks if name in FACE]
    if "eyes" in masks and masks["eyes"].any():
        masks["face"] = np.logical_or.reduce(face)
    return {name: _box(mask) for name, mask in masks.items() if mask.any()}


def _box(mask: NDArray[np.bool_]) -> Box:
    """The box, in pixels, of a supersampled mask with at least one pixel."""
    ys, xs = np.nonzero(mask)
    near, far = SUPERSAMPLING, SUPERSAMPLING - 1
    return (
        int(xs.min()) // near,
        int(ys.min()) // near,
        (int(xs.max()) + 1 + far) // near,
        (int(ys.max()) + 1 + far) // near,
    )


def _visible(identity: Identity, scene: Scene, size: int) -> dict[str, NDArray[np.bool_]]:
    """Part name -> mask of its visible pixels on the supersampled canvas."""
    side = size * SUPERSAMPLING
    canvas = Image.new("L", (side, side))
    drawing = CLASSES[identity.class_noun](identity)
    transform = _placement(scene, side)
    names = list(dict.fromkeys(part.name for part in drawing.parts))
    for part in drawing.parts:
        _stamp(canvas, [part], 1 + names.index(part.name), transform)
    if scene.accessory is not None:
        names.append("accessory")
        _stamp(canvas, accessory(scene.accessory, (0, 0, 0), drawing.top), len(names), transform)
    levels = np.asarray(canvas)
    return {name: levels == 1 + number for number, name in enumerate(names)}


def accessory(kind: str, color: Color, top: tuple[float, float, float]) -> list[Part]:
    """Parts of an accessory; `top`: x and y of the subject's top centre, half width."""
    x, y, w = top
    w = max(w, 0.26)
    band: Color = (
        (245, 245, 245)
        if sum(color) < 330
        else (max(0, color[0] - 90), max(0, color[1] - 90), max(0, color[2] - 90))
    )
    if kind == "hat":
        return [
            Part(box(x - w * 0.62, y - w * 1.25, x + w * 0.62, y + 0.02), color),
            Part(box(x - w * 0.62, y - w * 0.35, x + w * 0.62, y - w * 0.08), band, False),
            Part(ellipse(x, y + 0.02, w * 1.1, 0.09), color),
        ]
    if kind == "party hat":
        return [
            Part([(x - w * 0.75, y + 0.06), (x, y - w * 1.6), (x + w * 0.75, y + 0.06)], color),
            Part(ellipse(x, y - w * 1.6, w * 0.26, w * 0.26, n=12), band),
        ]
    if kind == "crown":
        spikes = [
            (-0.9, -1.0),
            (-0.45, -0.45),
            (0, -1.1),
            (0.45, -0.45),
            (0.9, -1.0),
            (0.8, 0.1),
            (-0.8, 0.1),
        ]
        return [
            Part([(x + u * w, y + v * w) for u, v in spikes], color),
            Part(ellipse(x, y - w * 0.18, w * 0.16, w * 0.16, n=10), band, False),
        ]
    wings = [
        Part(
            [
                (x, y - 0.06),
                (x + s * w * 0.95, y - 0.06 - w * 0.6),
                (x + s * w * 0.95, y - 0.06 + w * 0.5),
            ],
            color,
        )
        for s in (-1, 1)
    ]
    return [*wings, Part(ellipse(x, y - 0.06, w * 0.26, w * 0.26, n=12), band)]


def _placement(scene: Scene, side: int) -> Matrix:
    """Affine map from the subject's frame to canvas pixels."""
    half = side / 2
    c, s = (
        math.cos(scene.rotation) * scene.scale * half,
        math.sin(scene.rotation) * scene.scale * half,
    )
    m = -1 if scene.mirror else 1
    return c * m, -s, half * (1 + scene.x), s * m, c, half * (1 + scene.y)


def _map(points: list[Point], transform: Matrix) -> list[Point]:
    a, b, x, c, d, y = transform
    return [(a * u + b * v + x, c * u + d * v + y) for u, v in points]


def _paint(canvas: Image.Image, parts: list[Part], identity: Identity, transform: Matrix) -> None:
    draw = ImageDraw.Draw(canvas)
    width = _outline(canvas)
    texture = None if identity.pattern == "plain" else _texture(canvas.size, identity, transform)
    for part in parts:
        points = _map(part.points, transform)
        if part.fill != BODY:
            draw.polygon(points, fill=part.fill)
        elif texture is None:
            draw.polygon(points, fill=rgb(identity.color))
        else:
            _fill_with(canvas, texture, points)
        if part.outline:
            draw.line([*points, points[0], points[1]], fill=INK, width=width, joint=None)


def _stamp(canvas: Image.Image, parts: list[Part], level: int, transform: Matrix) -> None:
    """Fill the parts, outlines included, with one grey level."""
    draw = ImageDraw.Draw(canvas)
    for part in parts:
        points = _map(part.points, transform)
        draw.polygon(points, fill=level)
        if part.outline:
            draw.line([*points, points[0], points[1]], fill=level, width=_outline(canvas))


def _outline(canvas: Image.Image) -> int:
    """Width of an outline in pixels."""
    return max(1, round(canvas.width / 96))


def _fill_with(canvas: Image.Image, texture: Image.Image, points: list[Point]) -> None:
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    corner = max(0, int(min(xs))), max(0, int(min(ys)))
    far = min(canvas.width, int(max(xs)) + 2), min(canvas.height, int(max(ys)) + 2)
    if far[0] <= corner[0] or far[1] <= corner[1]:
        return
    mask = Image.new("1", (far[0] - corner[0], far[1] - corner[1]))
    ImageDraw.Draw(mask).polygon([(u - corner[0], v - corner[1]) for u, v in points], fill=1)
    canvas.paste(texture.crop((*corner, *far)), corner, mask)


def _texture(size: tuple[int, int], identity: Identity, transform: Matrix) -> Image.Image:
    """The identity's pattern over the whole canvas, fixed to the subject's frame."""
    image = Image.new("RGB", size, rgb(identity.color))
    draw = ImageDraw.Draw(image)
    second, pitch = rgb(identity.second), 0.34 * identity.pattern_scale
    turned = _turn(transform, identity.pattern_turn)
    reach = math.ceil(1.25 / pitch)
    if identity.pattern == "striped":
        for k in range(-reach, reach + 1):
            draw.polygon(_map(box(k * pitch, -1.4, (k + 0.5) * pitch, 1.4), turned), fill=second)
        return image
    radius = pitch * 0.28 * math.hypot(transform[0], transform[3])
    for k in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            x, y = k * pitch, j * pitch
            if identity.pattern == "spotted":
                ((u, v),) = _map([(x + pitch / 2 * (j % 2), y)], turned)
                draw.ellipse((u - radius, v - radius, u + radius, v + radius), fill=second)
            elif (k + j) % 2:
                draw.polygon(_map(box(x, y, x + pitch, y + pitch), turned), fill=second)
    return image


def _turn(transform: Matrix, angle: float) -> Matrix:
    """`transform` after a rotation of the subject's frame by `angle` radians."""
    a, b, x, c, d, y = transform
    cos, sin = math.cos(angle), math.sin(angle)
    return a * cos + b * sin, b * cos - a * sin, x, c * cos + d * sin, d * cos - c * sin, y
