"""Backgrounds: one function each, drawn on a square canvas with random details from a seed."""

import random
from collections.abc import Callable

from PIL import Image, ImageDraw

from examples.small_world.world import BACKGROUNDS, COLORS, PLAIN_BACKGROUNDS, Color

DrawBackground = Callable[[ImageDraw.ImageDraw, random.Random, int], None]


def draw(name: str, seed: int, side: int) -> Image.Image:
    """The background `name` as an RGB image of `side` x `side` pixels."""
    rng = random.Random(seed)
    if name in PLAIN_BACKGROUNDS:
        return Image.new("RGB", (side, side), jitter(rng, COLORS[name], 10))
    image = Image.new("RGB", (side, side))
    DRAW[name](ImageDraw.Draw(image), rng, side)
    return image


def jitter(rng: random.Random, color: Color, amount: int) -> Color:
    light = rng.randint(-amount, amount)
    r, g, b = (max(0, min(255, c + light + rng.randint(-3, 3))) for c in color)
    return r, g, b


def _ground(d: ImageDraw.ImageDraw, rng: random.Random, n: int, sky: Color, ground: Color) -> int:
    """Draw sky and ground; returns the horizon's row."""
    horizon = round(n * rng.uniform(0.5, 0.66))
    d.rectangle((0, 0, n, n), fill=jitter(rng, sky, 8))
    d.rectangle((0, horizon, n, n), fill=jitter(rng, ground, 8))
    return horizon


def _grass(d: ImageDraw.ImageDraw, rng: random.Random, n: int) -> None:
    horizon = _ground(d, rng, n, (150, 212, 252), (106, 184, 70))
    for _ in range(14):
        x, y = rng.randrange(n), rng.randrange(horizon, n)
        d.line((x, y, x + n // 60, y - n // 18), fill=(70, 140, 48), width=n // 70)


def _snow(d: ImageDraw.ImageDraw, rng: random.Random, n: int) -> None:
    _ground(d, rng, n, (196, 210, 232), (248, 250, 255))
    for _ in range(26):
        x, y, r = rng.randrange(n), rng.randrange(n), n * rng.uniform(0.008, 0.016)
        d.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255))


def _beach(d: ImageDraw.ImageDraw, rng: random.Random, n: int) -> None:
    horizon = _ground(d, rng, n, (138, 212, 250), (242, 220, 156))
    d.rectangle((0, horizon - n * 0.14, n, horizon), fill=jitter(rng, (36, 124, 206), 8))
    x, r = rng.uniform(0.1, 0.9) * n, n * 0.07
    d.ellipse((x - r, n * 0.06, x + r, n * 0.06 + 2 * r), fill=(255, 232, 90))


def _night(d: ImageDraw.ImageDraw, rng: random.Random, n: int) -> None:
    _ground(d, rng, n, (16, 18, 54), (26, 32, 40))
    for _ in range(22):
        u, v, w = rng.randrange(n), rng.randrange(round(n * 0.55)), n * 0.008
        d.ellipse((u - w, v - w, u + w, v + w), fill=(250, 250, 230))
    x, r = rng.uniform(0.1, 0.9) * n, n * 0.08
    d.ellipse((x - r, n * 0.05, x + r, n * 0.05 + 2 * r), fill=(252, 244, 196))


def _brick(d: ImageDraw.ImageDraw, rng: random.Random, n: int) -> None:
    d.rectangle((0, 0, n, n), fill=(196, 184, 174))
    high, wide, gap = n / 8, n / 4, n / 64
    shift = rng.random() * wide
    for row in range(9):
        for column in range(-1, 6):
            x = column * wide + (row % 2) * wide / 2 - shift
            y = row * high - n / 32
            d.rectangle((x, y, x + wide - gap, y + high - gap), fill=jitter(rng, (172, 72, 58), 8))


def _jungle(d: ImageDraw.ImageDraw, rng: random.Random, n: int) -> None:
    _ground(d, rng, n, (44, 104, 62), (60, 82, 40))
    for _ in range(16):
        x, y, r = rng.randrange(n), rng.uniform(0, 0.6) * n, n * rng.uniform(0.08, 0.16)
        shade = rng.choice(((30, 128, 58), (66, 160, 66), (24, 92, 52)))
        d.ellipse((x - r, y - r * 0.5, x + r, y + r * 0.5), fill=shade)
    for _ in range(3):
        x = rng.randrange(n)
        d.rectangle((x, 0, x + n // 28, n * 0.62), fill=(84, 60, 38))


def _desert(d: ImageDraw.ImageDraw, rng: random.Random, n: int) -> None:
    horizon = _ground(d, rng, n, (250, 206, 142), (226, 164, 84))
    x, r = rng.random() * n, n * 0.3
    d.ellipse((x - r, horizon - n * 0.08, x + r, horizon + n * 0.3), fill=(212, 146, 70))
    x, y = rng.uniform(0.05, 0.95) * n, horizon - n * 0.16
    green, w = (52, 136, 74), n * 0.05
    d.rectangle((x, y, x + w, horizon + n * 0.1), fill=green)
    d.rectangle((x - w * 1.6, y + w * 1.2, x, y + w * 2), fill=green)
    d.rectangle((x - w * 1.6, y, x - w * 0.8, y + w * 2), fill=green)


def _water(d: ImageDraw.ImageDraw, rng: random.Random, n: int) -> None:
    for k in range(6):
        d.rectangle((0, n * k / 6, n, n * (k + 1) / 6), fill=(22, 128 - 12 * k, 186 - 13 * k))
    for _ in range(9):
        x, y, r = rng.randrange(n), rng.randrange(n), n * rng.uniform(0.015, 0.04)
        d.ellipse((x - r, y - r, x + r, y + r), outline=(196, 236, 250), width=n // 90)
    for _ in range(4):
        x = rng.randrange(n)
        d.line(
            (x, n, x + n * 0.03, n * 0.86, x - n * 0.02, n * 0.74),
            fill=(40, 150, 90),
            width=n // 34,
        )


def _city(d: ImageDraw.ImageDraw, rng: random.Random, n: int) -> None:
    d.rectangle((0, 0, n, n), fill=jitter(rng, (206, 214, 226), 8))
    x = -rng.uniform(0, 0.1) * n
    while x < n:
        wide, top = n * rng.uniform(0.14, 0.22), n * rng.uniform(0.12, 0.42)
        d.rectangle((x, top, x + wide, n), fill=jitter(rng, (104, 110, 128), 16))
        for row in range(3):
            for column in (0.2, 0.6):
                u, v = x + wide * column, top + n * (0.05 + 0.11 * row)
                d.rectangle((u, v, u + wide * 0.2, v + n * 0.045), fill=(248, 222, 130))
        x += wide + n * 0.01
    d.rectangle((0, n * 0.76, n, n), fill=(72, 74, 80))
    for k in range(4):
        d.rectangle(
            (n * (0.06 + 0.26 * k), n * 0.87, n * (0.18 + 0.26 * k), n * 0.9), fill=(240, 240, 230)
        )


def _wood(d: ImageDraw.ImageDraw, rng: random.Random, n: int) -> None:
    horizon = _ground(d, rng, n, (232, 220, 200), (176, 118, 66))
    for k in range(1, 5):
        y = horizon + (n - horizon) * k / 5
        d.line((0, y, n, y), fill=(128, 82, 42), width=n // 80)
        x = rng.randrange(n)
        d.line((x, y, x, y + (n - horizon) / 5), fill=(128, 82, 42), width=n // 80)


DRAW: dict[str, DrawBackground] = {
    "grass": _grass,
    "snow": _snow,
    "beach": _beach,
    "night": _night,
    "brick": _brick,
    "jungle": _jungle,
    "desert": _desert,
    "water": _water,
    "city": _city,
    "wood": _wood,
}
assert set(DRAW) | set(PLAIN_BACKGROUNDS) == set(BACKGROUNDS)
