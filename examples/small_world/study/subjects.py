"""The study's subjects: identities that no training saw, eight views each on backgrounds of their own."""

import random
from pathlib import Path

from examples.small_world.render import render
from examples.small_world.world import random_identity, random_scene

SUBJECTS = ("cat", "robot", "car", "rocket", "mug")
"""One identity of each class; nothing is ever chosen by what these score."""
OTHERS = ("fish", "boat", "flower", "butterfly", "mushroom", "bird", "house")
"""For choosing recipes by. Bird and house were in the study until a recipe was given up for its pictures
of them."""
PLACES = ("white", "grass", "wood", "city", "yellow", "gray", "desert", "pink")
"""Of the photos, in their order; no evaluation prompt names one of them."""


def make_photos(folder: Path, class_noun: str, count: int) -> Path:
    """The first `count` photos of a class's subject, PNG files alone in `folder/<noun>-<count>`.

    A larger set holds the smaller ones.
    """
    identity = random_identity(random.Random(f"study/{class_noun}"), class_noun)
    made = folder / f"{class_noun}-{count}"
    made.mkdir(parents=True, exist_ok=True)
    for number, place in enumerate(PLACES[:count]):
        rng = random.Random(f"study/{class_noun}/{number}")
        scene = random_scene(rng, place, accessory_share=0)
        render(identity, scene).save(made / f"{number:02d}.png")
    return made
