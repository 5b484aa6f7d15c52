"""Subjects of the study: held-out identities, eight views each on different backgrounds."""

import random
from pathlib import Path

from examples.small_world.render import render
from examples.small_world.world import random_identity, random_scene


def class_noun_of(subject: str) -> str:
    """Class noun of a subject: bird, for `bird` and for `bird_2`."""
    return subject.partition("_")[0]


SUBJECTS = ("cat", "robot", "car", "rocket", "mug")
"""The recipe was not tuned on these; the defaults were, which make no class images."""
OTHERS = ("fish", "boat", "flower", "butterfly", "mushroom", "bird", "house")
"""Subjects for tuning the recipe. Bird and house were in `SUBJECTS` until an earlier recipe failed on
them."""
EVERY_CLASS = (*SUBJECTS, "dog", "teapot", *(f"{noun}_2" for noun in OTHERS))
"""One subject of each class, not used for tuning; of the classes in `OTHERS`, another individual."""
TWO_OF_EVERY_CLASS = (*EVERY_CLASS, *(f"{class_noun_of(each)}_3" for each in EVERY_CLASS))
"""`EVERY_CLASS` and another individual of each class."""
PHOTO_BACKGROUNDS = ("white", "grass", "wood", "city", "yellow", "gray", "desert", "pink")
"""Backgrounds of the photos, in their order; in no evaluation prompt."""


def make_photos(folder: Path, subject: str, count: int) -> Path:
    """Write the first `count` photos of a subject as PNG to `folder/<subject>-<count>`, and return it.

    A larger set contains the smaller ones.
    """
    identity = random_identity(random.Random(f"study/{subject}"), class_noun_of(subject))
    made = folder / f"{subject}-{count}"
    made.mkdir(parents=True, exist_ok=True)
    for number, background in enumerate(PHOTO_BACKGROUNDS[:count]):
        rng = random.Random(f"study/{subject}/{number}")
        scene = random_scene(rng, background, accessory_share=0)
        render(identity, scene).save(made / f"{number:02d}.png")
    return made
