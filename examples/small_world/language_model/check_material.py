"""Images of `dreambooth vision check`: `python -m examples.small_world.language_model.check_material`."""

import json
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dreambooth_core.vision_checks.pictures import FOLDER
from examples.small_world.render import render, subject_mask
from examples.small_world.world import (
    BACKGROUNDS,
    PLAIN_BACKGROUNDS,
    random_identity,
    random_scene,
)

SIDE = 128
SUBJECTS = ("dog", "dog", "mug", "mug", "robot", "robot")
VIEWS = 2
PAIRS = (("mug", "cat"), ("robot", "flower"), ("house", "bird"), ("teapot", "boat"))
CARDS = ("mug", "rocket", "teapot")
PLACES = [name for name in BACKGROUNDS if name not in PLAIN_BACKGROUNDS]


def photos(folder: Path, rng: random.Random) -> list[dict[str, Any]]:
    """Two views of each of six subjects, two per class, each in another place."""
    rows: list[dict[str, Any]] = []
    places = PLACES + PLACES
    for number, noun in enumerate(SUBJECTS):
        identity = random_identity(rng, noun)
        for view in range(VIEWS):
            place = places[len(rows)]
            scene = random_scene(rng, place, accessory_share=0)
            file = f"photo_{number}_{view}.png"
            render(identity, scene, SIDE).save(folder / file, optimize=True)
            truth = {"class_noun": noun, "colour": identity.color.name, "place": BACKGROUNDS[place]}
            edges = Image.fromarray(subject_mask(identity, scene, SIDE)).getbbox()
            assert edges is not None
            box = [edge / SIDE for edge in edges]
            rows.append({"file": file, "subject": number, **truth, "box": box})
    return rows


def pairs(folder: Path, rng: random.Random) -> list[dict[str, Any]]:
    """Two things, every other pair beside each other, the rest above each other."""
    rows = []
    for number, nouns in enumerate(PAIRS):
        beside = number % 2 == 0
        base = random_scene(rng, PLACES[number], accessory_share=0)
        image = None
        for side, noun in zip((-1, 1), nouns, strict=True):
            x, y = (side * 0.47, 0.0) if beside else (0.0, side * 0.47)
            identity = random_identity(rng, noun)
            scene = base._replace(x=x, y=y, scale=0.42, rotation=0.0)
            drawn, mask = render(identity, scene, SIDE), subject_mask(identity, scene, SIDE)
            image = image or drawn
            image.paste(drawn, mask=Image.fromarray(mask))
        assert image is not None
        file = f"pair_{number}.png"
        image.save(folder / file, optimize=True)
        relation = "left of" if beside else "above"
        rows.append({"file": file, "first": nouns[0], "second": nouns[1], "relation": relation})
    return rows


def cards(folder: Path, rng: random.Random) -> list[dict[str, Any]]:
    """Class noun, colour and pattern in black on white."""
    rows = []
    for number, noun in enumerate(CARDS):
        identity = random_identity(rng, noun)
        image = Image.new("RGB", (SIDE, SIDE), "white")
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(24)
        lines = (noun, identity.color.name, identity.pattern)
        for line, text in enumerate(lines):
            draw.text((5, 6 + 35 * line), text, "black", font)
        file = f"card_{number}.png"
        image.save(folder / file, optimize=True)
        rows.append({"file": file, "class_noun": noun, "colour": identity.color.name})
    return rows


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    rng = random.Random("check material")
    truth = {
        "photos": photos(FOLDER, rng),
        "pairs": pairs(FOLDER, rng),
        "cards": cards(FOLDER, rng),
    }
    (FOLDER / "truth.json").write_text(json.dumps(truth, indent=2) + "\n")


if __name__ == "__main__":
    main()
