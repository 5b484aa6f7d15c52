"""The study's subjects: identities that no training saw, eight views each on backgrounds of their own."""

import random
from pathlib import Path

from examples.small_world.render import render
from examples.small_world.world import random_identity, random_scene


def class_noun_of(subject: str) -> str:
    """Of `bird_2`, the second individual, as of `bird`, the first: bird."""
    return subject.partition("_")[0]


SUBJECTS = ("cat", "robot", "car", "rocket", "mug")
"""One identity of each class. No recipe is chosen by what these score; that the defaults make no class images
was."""
OTHERS = ("fish", "boat", "flower", "butterfly", "mushroom", "bird", "house")
"""For choosing recipes by. Bird and house were in the study until a recipe was given up for its pictures
of them."""
EVERY_CLASS = (*SUBJECTS, "dog", "teapot", *(f"{noun}_2" for noun in OTHERS))
"""One subject of each class of the world, that no recipe was chosen by: of `OTHERS`, another individual."""
TWO_OF_EVERY_CLASS = (*EVERY_CLASS, *(f"{class_noun_of(each)}_3" for each in EVERY_CLASS))
"""The same and another individual of each, so that an interval over subjects tells more."""
PLACES = ("white", "grass", "wood", "city", "yellow", "gray", "desert", "pink")
"""Of the photos, in their order; no evaluation prompt names one of them."""


def make_photos(folder: Path, subject: str, count: int) -> Path:
    """The first `count` photos of a subject, PNG files alone in `folder/<subject>-<count>`.

    A larger set holds the smaller ones.
    """
    identity = random_identity(random.Random(f"study/{subject}"), class_noun_of(subject))
    made = folder / f"{subject}-{count}"
    made.mkdir(parents=True, exist_ok=True)
    for number, place in enumerate(PLACES[:count]):
        rng = random.Random(f"study/{subject}/{number}")
        scene = random_scene(rng, place, accessory_share=0)
        render(identity, scene).save(made / f"{number:02d}.png")
    return made
