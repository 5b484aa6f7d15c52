"""Shapes of the class nouns: one function each, from an identity to polygons in the subject's frame.

The frame is [-1, 1] x [-1, 1], y downwards. A `Part` is a polygon filled with an RGB colour, or, for
`BODY`, with the identity's colour and pattern. Later parts cover earlier ones.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from examples.small_world.world import Color, Identity, rgb

Point = tuple[float, float]
BODY = "body"
INK: Color = (30, 28, 34)
WHITE: Color = (250, 250, 250)
GLASS: Color = (190, 228, 246)
FACE = frozenset({"eyes", "nose", "mouth", "muzzle", "whiskers", "visor", "beak"})
"""Names of a face's parts. Classes without `eyes` have no face."""
HEAD_GROWTH = 1.3
EYE_GROWTH = 1.5


class Part(NamedTuple):
    """A filled polygon, with an ink outline unless `outline` is false."""

    points: list[Point]
    fill: Color | str
    outline: bool = True
    name: str = "body"
    """Kind of part; several parts may share it, such as two eyes."""


class Drawing(NamedTuple):
    """Parts from back to front, and an accessory's position: x and y of the top's centre, half width."""

    parts: list[Part]
    top: tuple[float, float, float]


@cache
def _circle(n: int) -> list[Point]:
    return [(math.cos(2 * math.pi * i / n), math.sin(2 * math.pi * i / n)) for i in range(n)]


def ellipse(
    x: float, y: float, rx: float, ry: float, tilt: float = 0.0, n: int = 20
) -> list[Point]:
    if not tilt:
        return [(x + rx * u, y + ry * v) for u, v in _circle(n)]
    a, b = math.cos(tilt) * rx, math.sin(tilt) * ry
    c, d = math.sin(tilt) * rx, math.cos(tilt) * ry
    return [(x + a * u - b * v, y + c * u + d * v) for u, v in _circle(n)]


def box(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def strip(x0: float, y0: float, x1: float, y1: float, width: float) -> list[Point]:
    """A thick line."""
    length = math.hypot(x1 - x0, y1 - y0) or 1.0
    u, v = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
    return [(x0 + u, y0 + v), (x1 + u, y1 + v), (x1 - u, y1 - v), (x0 - u, y0 - v)]


def bow(x: float, y: float, radius: float, start: float, end: float, width: float) -> list[Point]:
    """A thick arc from angle `start` to `end`, in radians."""
    angles = [start + (end - start) * i / 10 for i in range(11)]
    outer = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
    inner = radius - width
    return outer + [(x + inner * math.cos(a), y + inner * math.sin(a)) for a in reversed(angles)]


def eyes(x: float, y: float, gap: float, size: float) -> list[Part]:
    parts = []
    for side in (-1, 1):
        parts.append(
            Part(ellipse(x + side * gap, y, size, size * 1.1, n=12), WHITE, False, name="eyes")
        )
        pupil = ellipse(x + side * gap, y, size * 0.6, size * 0.7, n=10)
        parts.append(Part(pupil, INK, False, name="eyes"))
    return parts


def growth(i: Identity) -> tuple[float, float]:
    """Scale of heads and of eyes, relative to the small ones."""
    return (HEAD_GROWTH, EYE_GROWTH) if i.faces == "large" else (1.0, 1.0)


def cat(i: Identity) -> Drawing:
    a, b, c = i.proportions
    second = rgb(i.second)
    k, e = growth(i)
    head, wide, ear = (0.36 + 0.06 * a) * k, 0.4 + 0.1 * b, 0.26 + 0.1 * c
    y = -0.36 if k == 1 else -0.22
    tail = (
        bow(0.42, 0.34, 0.42, -1.3, 1.4, 0.16)
        if i.variant != 2
        else strip(0.3, 0.6, 0.85, 0.0, 0.17)
    )
    parts = [Part(tail, BODY, name="tail")]
    parts.append(Part(ellipse(0, 0.42, wide, 0.5), BODY))
    for side in (-1, 1):
        tip = (side * head * (0.95 if i.variant else 0.7), y - head - ear)
        ears = [(side * head * 0.95, y - 0.08), tip, (side * 0.06, y - head * 0.9)]
        parts.append(Part(ears, BODY, name="ears"))
        paw = ellipse(side * 0.2, 0.86, 0.16, 0.1, n=14)
        parts.append(Part(paw, second if i.extra else BODY, name="legs"))
    if i.extra and k > 1:
        parts.append(Part(ellipse(0, 0.48, wide * 0.55, 0.3), second, False, name="belly"))
    parts.append(Part(ellipse(0, y, head * 1.12, head), BODY, name="head"))
    if i.extra and k == 1:
        parts.append(Part(ellipse(0, 0.48, wide * 0.55, 0.3), second, False, name="belly"))
    parts += eyes(0, y - 0.06 * k, 0.16 * e, 0.1 * e)
    nose = [(-0.06 * k, y + 0.08 * k), (0.06 * k, y + 0.08 * k), (0, y + 0.16 * k)]
    parts.append(Part(nose, (235, 120, 140), False, name="nose"))
    for side in (-1, 1):
        whisker = strip(side * 0.1 * k, y + 0.14 * k, side * 0.5 * k, y + 0.1 * k, 0.03)
        parts.append(Part(whisker, INK, False, name="whiskers"))
    return Drawing(parts, (0, y - head * 0.85, head * 1.1))


def dog(i: Identity) -> Drawing:
    a, b, c = i.proportions
    second = rgb(i.second)
    k, e = growth(i)
    head, wide, ear = (0.36 + 0.05 * a) * k, 0.38 + 0.1 * b, 0.3 + 0.12 * c
    y, collar = (-0.38, 0.0) if k == 1 else (-0.26, 0.24)
    parts = [Part(strip(0.25, 0.45, 0.85, 0.05 - 0.2 * i.variant, 0.15), BODY, name="tail")]
    parts.append(Part(ellipse(0, 0.38, wide, 0.46), BODY))
    for side in (-1, 1):
        leg = box(side * 0.24 - 0.11, 0.5, side * 0.24 + 0.11, 0.95)
        parts.append(Part(leg, BODY, name="legs"))
    parts.append(Part(ellipse(0, y, head, head), BODY, name="head"))
    for side in (-1, 1):
        if i.variant == 1:
            ears = ellipse(side * head * 0.85, y - head * 0.8, ear * 0.55, ear * 0.55)
        else:
            tilt = side * (-0.5 if i.variant == 0 else 0.2)
            ears = ellipse(side * (head + 0.03), y + 0.05, ear * 0.45, ear, tilt)
        parts.append(Part(ears, second, name="ears"))
    muzzle = ellipse(0, y + 0.16 * k, 0.22 * k, 0.17 * k)
    parts.append(Part(muzzle, WHITE if i.extra else second, name="muzzle"))
    parts.append(Part(ellipse(0, y + 0.08 * k, 0.09 * k, 0.07 * k, n=12), INK, False, name="nose"))
    parts += eyes(0, y - 0.1 * e, 0.15 * e, 0.085 * e)
    if i.extra:
        parts.append(Part(box(-0.3, -0.06 + collar, 0.3, 0.04 + collar), second, name="collar"))
        tag = ellipse(0, 0.08 + collar, 0.08, 0.08, n=12)
        parts.append(Part(tag, (245, 200, 40), name="collar"))
    return Drawing(parts, (0, y - head * 0.9, head))


def bird(i: Identity) -> Drawing:
    a, b, c = i.proportions
    second = rgb(i.second)
    k, e = growth(i)
    wide, high, beak = 0.5 + 0.1 * a, 0.5 + 0.08 * b, 0.24 + 0.12 * c
    orange = (240, 150, 40)
    tail = [(0.3, 0.25), (0.95, 0.05 + 0.3 * (i.variant - 1)), (0.9, 0.45), (0.35, 0.5)]
    parts = [Part(tail, second, name="tail")]
    for x in (-0.14, 0.12):
        parts.append(Part(strip(x, 0.5, x - 0.02, 0.95, 0.07), orange, name="legs"))
        foot = strip(x - 0.16, 0.94, x + 0.1, 0.94, 0.07)
        parts.append(Part(foot, orange, False, name="legs"))
    parts.append(Part(ellipse(0, 0.2, wide, high, 0.25), BODY))
    left, low = (0.0, 0.0) if k == 1 else (0.1, 0.04)
    bill = [(-0.55 - left, -0.4), (-0.5 - beak - left, -0.28), (-0.5 - left, -0.2)]
    parts.append(Part(bill, orange, name="beak"))
    parts.append(Part(ellipse(-0.28, -0.36 + low, 0.34 * k, 0.32 * k), BODY, name="head"))
    rise = 0.32 * (k - 1) - low
    if i.variant == 2:
        for n in (-1, 0, 1):
            crest = strip(-0.26 + 0.1 * n, -0.62 - rise, -0.24 + 0.22 * n, -0.92 - rise, 0.08)
            parts.append(Part(crest, second, name="crest"))
    wing = ellipse(0.14, 0.2, 0.34, 0.2, 0.5)
    parts.append(Part(wing, second if i.extra else BODY, name="wings"))
    parts.append(Part(ellipse(-0.36, -0.42, 0.1 * e, 0.1 * e, n=12), WHITE, False, name="eyes"))
    pupil = ellipse(-0.38, -0.42, 0.06 * e, 0.06 * e, n=10)
    parts.append(Part(pupil, INK, False, name="eyes"))
    return Drawing(parts, (-0.28, -0.64 - rise, 0.32 * k))


def fish(i: Identity) -> Drawing:
    a, b, c = i.proportions
    second = rgb(i.second)
    _, e = growth(i)
    long, high, tail = 0.66 + 0.08 * a, 0.42 + 0.14 * b, 0.34 + 0.12 * c
    fork = 0.12 * i.variant
    top = [(-0.25, -high * 0.8), (0.0, -high - 0.3), (0.35, -high * 0.75)]
    bottom = [(-0.1, high * 0.8), (0.1, high + 0.24), (0.3, high * 0.7)]
    parts = [
        Part([(0.42, 0), (0.95, -tail), (0.95 - fork, 0), (0.95, tail)], second, name="tail"),
        Part(top, second, name="fins"),
        Part(bottom, second, name="fins"),
        Part(ellipse(-0.12, 0, long, high), BODY),
    ]
    if i.extra:
        parts.append(Part(ellipse(0.02, 0.08, 0.18, 0.11, 0.4), second, name="fins"))
    parts.append(Part(ellipse(-0.48, -0.1, 0.14 * e, 0.14 * e, n=14), WHITE, name="eyes"))
    pupil = ellipse(-0.51, -0.1, 0.07 * e, 0.08 * e, n=10)
    parts.append(Part(pupil, INK, False, name="eyes"))
    parts.append(Part(bow(-0.7, 0.06, 0.16, 0.2, 1.5, 0.05), INK, False, name="mouth"))
    return Drawing(parts, (-0.2, -high * 0.92, 0.4))


def robot(i: Identity) -> Drawing:
    a, b, c = i.proportions
    second = rgb(i.second)
    k, e = growth(i)
    wide, head, leg = 0.36 + 0.08 * a, (0.28 + 0.07 * b) * k, 0.26 + 0.08 * c
    y = -0.5 if k == 1 else -0.42
    parts = []
    for side in (-1, 1):
        limb = box(side * 0.2 - 0.1, 0.45, side * 0.2 + 0.1, 0.55 + leg)
        foot = box(side * 0.22 - 0.15, 0.5 + leg, side * 0.22 + 0.15, 0.66 + leg)
        arm = strip(side * wide, -0.1, side * (wide + 0.28), 0.35, 0.17)
        hand = ellipse(side * (wide + 0.28), 0.38, 0.11, 0.11, n=12)
        parts += [Part(limb, second, name="legs"), Part(foot, second, name="legs")]
        parts += [Part(arm, second, name="arms"), Part(hand, second, name="arms")]
        if i.variant != 1:
            x = side * head * 0.6
            rod = strip(x, y - head * 0.7, x + side * 0.1, y - head - 0.24, 0.06)
            knob = ellipse(x + side * 0.1, y - head - 0.24, 0.08, 0.08, n=12)
            parts += [Part(rod, INK, name="antennas"), Part(knob, second, name="antennas")]
    if i.variant == 1:
        rod = strip(0, y - head * 0.7, 0, y - head - 0.26, 0.06)
        knob = ellipse(0, y - head - 0.26, 0.1, 0.1, n=12)
        parts += [Part(rod, INK, name="antennas"), Part(knob, second, name="antennas")]
    parts.append(Part(box(-wide, -0.22, wide, 0.5), BODY))
    outline = (
        ellipse(0, y, head * 1.15, head)
        if i.variant == 2
        else box(-head * 1.2, y - head, head * 1.2, y + head)
    )
    parts.append(Part(outline, BODY, name="head"))
    visor = box(-0.26 * k, y - 0.14 * k, 0.26 * k, y + 0.06 * k)
    parts.append(Part(visor, INK, False, name="visor"))
    for side in (-1, 1):
        lamp = ellipse(side * 0.13 * k, y - 0.04 * k, 0.08 * e, 0.07 * e, n=12)
        parts.append(Part(lamp, (90, 235, 245), False, name="eyes"))
    chest = ellipse(0, 0.12, 0.16, 0.16) if i.extra else box(-0.18, 0.0, 0.18, 0.22)
    parts.append(Part(chest, second, name="chest"))
    return Drawing(parts, (0, y - head * 0.92, head * 1.1))


def car(i: Identity) -> Drawing:
    a, b, c = i.proportions
    second = rgb(i.second)
    roof, left, wheel = -0.42 - 0.12 * a, -0.5 + 0.12 * b, 0.21 + 0.04 * c
    right = (0.45, 0.6, 0.15)[i.variant]
    parts = [
        Part([(left - 0.18, 0.0), (left, roof), (right, roof), (right + 0.2, 0.0)], BODY),
        Part(box(-0.92, -0.08, 0.92, 0.4), BODY),
        Part(
            [(left, -0.06), (left + 0.08, roof + 0.1), (-0.06, roof + 0.1), (-0.06, -0.06)], GLASS
        ),
        Part(
            [(0.04, -0.06), (0.04, roof + 0.1), (right - 0.06, roof + 0.1), (right + 0.04, -0.06)],
            GLASS,
        ),
        Part(ellipse(-0.86, 0.1, 0.08, 0.08, n=12), (255, 235, 130)),
    ]
    if i.extra:
        parts.append(Part(box(-0.9, 0.16, 0.92, 0.26), second, False))
    for x in (-0.5, 0.5):
        parts.append(Part(ellipse(x, 0.42, wheel, wheel), INK))
        parts.append(Part(ellipse(x, 0.42, wheel * 0.5, wheel * 0.5, n=14), second, False))
    return Drawing(parts, ((left + right) / 2, roof, 0.42))


def boat(i: Identity) -> Drawing:
    a, b, c = i.proportions
    second = rgb(i.second)
    mast, deep, sail = -0.85 + 0.08 * a, 0.42 + 0.08 * b, 0.55 + 0.12 * c
    parts = [Part(strip(0, mast, 0, 0.3, 0.07), (130, 90, 50))]
    if i.variant == 0:
        parts.append(Part([(0.06, mast + 0.05), (sail + 0.06, 0.16), (0.06, 0.16)], second))
        parts.append(Part([(-0.06, mast + 0.2), (-sail * 0.8, 0.16), (-0.06, 0.16)], WHITE))
    elif i.variant == 1:
        parts.append(Part(box(-sail * 0.8, mast + 0.12, sail * 0.8, 0.05), second))
    else:
        parts.append(Part(box(-0.35, -0.25, 0.4, 0.3), WHITE))
        parts.append(Part(box(0.05, -0.6, 0.27, -0.2), second))
    parts.append(Part([(-0.9, 0.25), (0.9, 0.25), (0.6, 0.25 + deep), (-0.6, 0.25 + deep)], BODY))
    if i.extra:
        for x in (-0.4, 0.0, 0.4):
            parts.append(Part(ellipse(x, 0.25 + deep * 0.45, 0.09, 0.09, n=12), GLASS))
    return Drawing(parts, (0, mast + 0.05, 0.26))


def rocket(i: Identity) -> Drawing:
    a, b, c = i.proportions
    second = rgb(i.second)
    wide, nose, fin = 0.28 + 0.06 * a, 0.4 + 0.1 * b, 0.28 + 0.1 * c
    parts = [Part([(-0.16, 0.55), (0, 1.0), (0.16, 0.55)], (255, 170, 50), False)]
    for side in (-1, 1):
        low = 0.75 if i.variant else 0.6
        parts.append(
            Part(
                [(side * wide * 0.9, 0.1), (side * (wide + fin), low), (side * wide * 0.9, 0.55)],
                second,
            )
        )
    body = ellipse(0, 0.05, wide * 1.1, 0.62) if i.variant == 1 else box(-wide, -0.45, wide, 0.58)
    parts.append(Part(body, BODY))
    if i.variant != 1:
        parts.append(Part([(-wide, -0.44), (0, -0.44 - nose), (wide, -0.44)], second))
    for y in (-0.2, 0.18) if i.extra else (-0.12,):
        parts.append(Part(ellipse(0, y, 0.14, 0.14, n=16), WHITE))
        parts.append(Part(ellipse(0, y, 0.09, 0.09, n=14), GLASS, False))
    top = -0.55 if i.variant == 1 else -0.44 - nose * 0.75
    return Drawing(parts, (0, top, 0.26))


def house(i: Identity) -> Drawing:
    a, b, c = i.proportions
    second = rgb(i.second)
    wide, wall, peak = 0.6 + 0.1 * a, -0.1 + 0.08 * b, 0.5 + 0.12 * c
    roofs = (
        [(-wide - 0.16, wall), (0, wall - peak), (wide + 0.16, wall)],
        [
            (-wide - 0.1, wall),
            (-wide * 0.6, wall - peak * 0.7),
            (wide * 0.6, wall - peak * 0.7),
            (wide + 0.1, wall),
        ],
        [
            (-wide - 0.08, wall),
            (-wide - 0.08, wall - peak * 0.45),
            (wide + 0.08, wall - peak * 0.45),
            (wide + 0.08, wall),
        ],
    )
    parts = [Part(box(0.3, wall - peak * 0.9, 0.46, wall), second)] if i.extra else []
    parts.append(Part(box(-wide, wall - 0.02, wide, 0.88), BODY))
    parts.append(Part(roofs[i.variant], second))
    parts.append(Part(box(-0.14, 0.38, 0.16, 0.88), (120, 76, 44)))
    for x in (-wide * 0.62, wide * 0.62):
        parts.append(Part(box(x - 0.13, wall + 0.16, x + 0.13, wall + 0.4), GLASS))
    return Drawing(parts, (0, wall - peak * (0.85, 0.7, 0.45)[i.variant], 0.34))


def mug(i: Identity) -> Drawing:
    a, b, c = i.proportions
    second = rgb(i.second)
    wide, high, grip = 0.44 + 0.1 * a, 0.6 + 0.12 * b, 0.32 + 0.08 * c
    narrow = wide * (1.0, 0.75, 1.2)[i.variant]
    parts = [Part(bow(wide * 0.9, 0.12, grip, -1.55, 1.55, 0.14), second if i.extra else BODY)]
    parts.append(
        Part(
            [
                (-wide, -high + 0.1),
                (wide, -high + 0.1),
                (narrow, high + 0.1),
                (-narrow, high + 0.1),
            ],
            BODY,
        )
    )
    parts.append(Part(ellipse(0, high + 0.08, narrow, 0.13), BODY, False))
    parts.append(Part(ellipse(0, -high + 0.1, wide, 0.16), second))
    parts.append(Part(ellipse(0, -high + 0.12, wide * 0.8, 0.1), (92, 58, 38), False))
    return Drawing(parts, (0, -high + 0.05, 0.4))


def teapot(i: Identity) -> Drawing:
    a, b, c = i.proportions
    second = rgb(i.second)
    wide, high, spout = 0.54 + 0.06 * a, 0.46 + 0.1 * b, 0.2 + 0.1 * c
    handle = bow(0.5, 0.18, 0.42, -1.4, 1.4, 0.12)
    parts = (
        [Part(handle, second)]
        if i.variant != 2
        else [Part(bow(0, -0.2, 0.6, -2.9, -0.25, 0.1), second)]
    )
    parts.append(
        Part([(-0.35, 0.35), (-0.82, -0.12 - spout), (-0.98, -0.04 - spout), (-0.5, 0.55)], BODY)
    )
    body = [(-wide, 0.62), (-wide * 0.7, -0.2), (wide * 0.7, -0.2), (wide, 0.62)]
    parts.append(Part(body if i.variant == 1 else ellipse(0, 0.22, wide, high), BODY))
    parts.append(Part(ellipse(0, -0.2, 0.34, 0.13), second))
    parts.append(Part(ellipse(0, -0.36, 0.1, 0.1, n=14), second if i.extra else BODY))
    if i.extra:
        parts.append(Part(ellipse(0, 0.26, 0.16, 0.16), second))
    return Drawing(parts, (0, -0.4, 0.3))


def flower(i: Identity) -> Drawing:
    a, b, c = i.proportions
    second = rgb(i.second)
    petals, reach, core = (5, 7, 9)[i.variant], 0.38 + 0.05 * a, 0.2 + 0.06 * b
    width = (0.27, 0.2, 0.15)[i.variant] + 0.03 * c
    y = -0.3
    parts = [Part(strip(0, y, 0.03, 0.95, 0.08), (60, 150, 60))]
    parts.append(Part(ellipse(0.22, 0.6, 0.24, 0.1, -0.5), (70, 165, 70)))
    if i.extra:
        parts.append(Part(ellipse(-0.2, 0.72, 0.24, 0.1, 0.5), (70, 165, 70)))
    for k in range(petals):
        turn = 2 * math.pi * k / petals - math.pi / 2
        x, v = reach * math.cos(turn), reach * math.sin(turn)
        parts.append(Part(ellipse(x, y + v, width * 1.25, width, turn, n=16), BODY))
    parts.append(Part(ellipse(0, y, core, core), second))
    return Drawing(parts, (0, y - reach - width * 0.7, 0.34))


def mushroom(i: Identity) -> Drawing:
    a, b, c = i.proportions
    second = rgb(i.second)
    wide, high, stem = 0.7 + 0.12 * a, 0.62 + 0.14 * b, 0.2 + 0.07 * c
    cap = [
        (wide * math.cos(t), -0.02 - high * math.sin(t))
        for t in (math.pi * k / 14 for k in range(15))
    ]
    if i.variant == 1:
        cap = [(-wide, -0.02), (-0.12, -high - 0.2), (0.12, -high - 0.2), (wide, -0.02)]
    parts = [
        Part([(-stem, -0.1), (stem, -0.1), (stem * 1.5, 0.9), (-stem * 1.5, 0.9)], (245, 232, 208))
    ]
    if i.extra:
        parts.append(Part(ellipse(0, 0.18, stem * 1.5, 0.1), second))
    parts.append(Part(cap, BODY))
    parts.append(Part(ellipse(0, -0.02, wide, 0.12), second))
    if i.variant == 2:
        for x, v in ((-0.36, -0.3), (0.02, -0.46), (0.36, -0.26)):
            parts.append(Part(ellipse(x, v, 0.11, 0.09, n=14), WHITE, False))
    return Drawing(parts, (0, -high * 0.95, 0.36))


def butterfly(i: Identity) -> Drawing:
    a, b, c = i.proportions
    second = rgb(i.second)
    upper, lower, spread = 0.42 + 0.06 * a, 0.3 + 0.06 * b, 0.46 + 0.06 * c
    parts = []
    for side in (-1, 1):
        parts.append(Part(strip(side * 0.04, -0.45, side * 0.22, -0.85, 0.05), INK, False))
        parts.append(Part(ellipse(side * 0.22, -0.85, 0.06, 0.06, n=10), second))
        low = second if i.extra else BODY
        parts.append(Part(ellipse(side * spread * 0.8, 0.42, lower, lower * 1.1, side * 0.4), low))
        if i.variant == 1:
            parts.append(Part([(0, 0.1), (side * 0.95, -0.7), (side * 0.85, 0.1)], BODY))
        else:
            parts.append(
                Part(ellipse(side * spread, -0.24, upper, upper * 0.85, side * -0.6), BODY)
            )
        if i.variant != 0:
            parts.append(Part(ellipse(side * 0.58, -0.24, 0.12, 0.12, n=14), second))
    parts.append(Part(ellipse(0, 0.08, 0.11, 0.6), INK))
    return Drawing(parts, (0, -0.5, 0.26))


CLASSES: dict[str, Callable[[Identity], Drawing]] = {
    draw.__name__: draw
    for draw in (
        cat,
        dog,
        bird,
        fish,
        robot,
        car,
        boat,
        rocket,
        house,
        mug,
        teapot,
        flower,
        mushroom,
        butterfly,
    )
}
