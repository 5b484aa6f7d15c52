"""Identities, scenes and captions of the small world.

An identity is a subject's attributes; a scene is background, accessory and pose. Both are drawn from a
seed, so that the truth about subject and prompt is known for every image.
"""

import random
from typing import Literal, NamedTuple

Color = tuple[int, int, int]
Faces = Literal["small", "large"]
FACES: Faces = "small"
"""Size of heads and eyes in all that is shipped: photos, base, encoders, detector. `large` heads are 1.3
times, and `large` eyes 1.5 times, as large."""

COLORS: dict[str, Color] = {
    "red": (214, 40, 46),
    "orange": (244, 134, 36),
    "yellow": (248, 212, 52),
    "green": (62, 160, 72),
    "teal": (30, 158, 156),
    "blue": (48, 98, 218),
    "purple": (132, 60, 184),
    "pink": (244, 132, 182),
    "brown": (134, 86, 46),
    "gray": (140, 142, 148),
    "white": (244, 244, 242),
    "black": (44, 44, 50),
}
PATTERNS = ("plain", "striped", "spotted", "checkered")
ACCESSORIES = ("hat", "party hat", "crown", "bow")
PLAIN_BACKGROUNDS = ("red", "yellow", "green", "blue", "purple", "pink", "gray", "white")
BACKGROUNDS: dict[str, str] = {
    "grass": "on the grass",
    "snow": "in the snow",
    "beach": "on the beach",
    "night": "at night",
    "brick": "in front of a brick wall",
    "jungle": "in the jungle",
    "desert": "in the desert",
    "water": "under water",
    "city": "in the city",
    "wood": "on a wooden floor",
} | {name: f"on a {name} background" for name in PLAIN_BACKGROUNDS}


class Named(NamedTuple):
    """A named colour in an identity's own shade."""

    name: str
    shade: tuple[float, float, float]
    """Added to the named colour's red, green and blue."""


class Identity(NamedTuple):
    """One subject: the attributes that all of its images share."""

    class_noun: str
    color: Named
    second: Named
    pattern: str
    pattern_turn: float
    """Radians."""
    pattern_scale: float
    variant: int
    """0 to 2: one of the class's three shapes."""
    extra: bool
    proportions: tuple[float, float, float]
    """Each in [-1, 1]."""
    faces: Faces = FACES


class Scene(NamedTuple):
    """One view of a subject: the attributes that differ between its images."""

    background: str
    accessory: str | None
    accessory_color: str
    x: float
    y: float
    scale: float
    rotation: float
    """Radians."""
    mirror: bool
    decor: int
    """Seed of the background's details."""


class Caption(NamedTuple):
    """A text and the attributes that it states; None: not stated."""

    text: str
    class_noun: str | None = None
    color: str | None = None
    second: str | None = None
    pattern: str | None = None
    accessory: str | None = None
    accessory_color: str | None = None
    background: str | None = None


def rgb(color: Named) -> Color:
    """Red, green and blue of a shade, 0-255."""
    r, g, b = (
        max(0, min(255, round(c + s))) for c, s in zip(COLORS[color.name], color.shade, strict=True)
    )
    return r, g, b


def random_identity(rng: random.Random, class_noun: str, faces: Faces = FACES) -> Identity:
    first, second = rng.sample(list(COLORS), 2)

    def shaded(name: str) -> Named:
        light = rng.uniform(-14, 14)
        return Named(name, tuple(light + rng.uniform(-10, 10) for _ in range(3)))  # type: ignore[arg-type]

    return Identity(
        class_noun=class_noun,
        color=shaded(first),
        second=shaded(second),
        pattern=rng.choice(PATTERNS),
        pattern_turn=rng.choice((0.0, 0.5, 1.0)) * 1.5708 + rng.uniform(-0.15, 0.15),
        pattern_scale=rng.uniform(0.8, 1.3),
        variant=rng.randrange(3),
        extra=rng.random() < 0.5,
        proportions=(rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(-1, 1)),
        faces=faces,
    )


def random_scene(
    rng: random.Random, background: str | None = None, accessory_share: float = 0.25
) -> Scene:
    """A view; `accessory_share` is the probability of an accessory."""
    scale = rng.uniform(0.6, 0.9)
    room = 1 - scale
    return Scene(
        background=background or rng.choice(list(BACKGROUNDS)),
        accessory=rng.choice(ACCESSORIES) if rng.random() < accessory_share else None,
        accessory_color=rng.choice(list(COLORS)),
        x=rng.uniform(-room, room) * 0.7,
        y=rng.uniform(-room, room) * 0.5 + 0.05,
        scale=scale,
        rotation=rng.gauss(0, 0.12),
        mirror=rng.random() < 0.5,
        decor=rng.randrange(2**31),
    )


def describe(rng: random.Random, identity: Identity, scene: Scene, keep: float = 0.5) -> Caption:
    """A caption in English, each attribute stated with probability `keep`.

    Backgrounds have a probability of at least 0.7, accessories of at least 0.8.
    """
    with_color, with_pattern = rng.random() < keep, rng.random() < keep
    with_accessory = scene.accessory is not None and rng.random() < max(keep, 0.8)
    with_background = rng.random() < max(keep, 0.7)
    words: list[str] = []
    second = None
    if with_color:
        words.append(identity.color.name)
        if with_pattern and identity.pattern != "plain" and rng.random() < 0.5:
            second = identity.second.name
            words += ["and", second]
    if with_pattern and identity.pattern != "plain":
        words.append(identity.pattern)
    noun = " ".join([*words, identity.class_noun])
    article = "an" if noun[0] in "aeiou" else "a"
    start = rng.choice(("a photo of ", "a photo of ", "a picture of ", ""))
    text = f"{start}{article} {noun}"
    if with_accessory:
        text += (
            f" wearing {_article(scene.accessory_color)} {scene.accessory_color} {scene.accessory}"
        )
    if with_background:
        text += f" {BACKGROUNDS[scene.background]}"
    return Caption(
        text,
        class_noun=identity.class_noun,
        color=identity.color.name if with_color else None,
        second=second,
        pattern=identity.pattern if with_pattern and identity.pattern != "plain" else None,
        accessory=scene.accessory if with_accessory else None,
        accessory_color=scene.accessory_color if with_accessory else None,
        background=scene.background if with_background else None,
    )


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
