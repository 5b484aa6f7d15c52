"""Render the instance photos: `python -m examples.small_world.make_photos`.

Three held-out identities, five views each on different backgrounds, each with a caption file.
"""

import argparse
import random
from pathlib import Path

from examples.small_world.render import render
from examples.small_world.world import BACKGROUNDS, random_identity, random_scene

HERE = Path(__file__).parent
SUBJECTS = {"robot": 11, "dog": 23, "teapot": 5}
"""Class noun -> seed of the identity."""
PHOTO_BACKGROUNDS = ("white", "grass", "wood", "city", "yellow")


def make_photos(out: Path) -> None:
    for class_noun, seed in SUBJECTS.items():
        identity = random_identity(random.Random(f"photos/{seed}"), class_noun)
        folder = out / class_noun
        folder.mkdir(parents=True, exist_ok=True)
        for number, background in enumerate(PHOTO_BACKGROUNDS):
            rng = random.Random(f"photos/{seed}/{number}")
            scene = random_scene(rng, background, accessory_share=0)
            render(identity, scene).save(folder / f"{number:02d}.png")
            caption = f"a photo of {{subject}} {BACKGROUNDS[background]}\n"
            (folder / f"{number:02d}.txt").write_text(caption)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "photos")
    make_photos(parser.parse_args().out)
