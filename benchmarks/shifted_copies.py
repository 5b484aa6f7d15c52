"""Detection rate of shifted copies: `python benchmarks/shifted_copies.py FOLDER [--photos N]`.

FOLDER has a folder of photos per subject, as DreamBench. Positives: two overlapping windows of a photo
(`window`), or the photo and a part of it (`crop`), one of them resized to 0.5-1.0, made up to 10 % darker
or lighter, mirrored or not, and saved as JPEG of quality 75. Negatives: all pairs of different photos
within a subject and across subjects. Prints how many of each score above the limit.
"""

import argparse
import io
import itertools
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from dreambooth_core.vision.shifts import COPY, Views, shifted, views

CUTS = (0.10, 0.20, 0.33, 0.45)
"""Share of the width, the height or both by which a copy is shifted."""
SIDE = 900


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.draft("RGB", (SIDE, SIDE))
        photo = image.convert("RGB")
    photo.thumbnail((SIDE, SIDE))
    return photo


def altered(photo: Image.Image, draw: np.random.Generator, mirrored: bool) -> Image.Image:
    """The photo resized, with another brightness, saved as JPEG."""
    scale = draw.uniform(0.5, 1)
    size = int(photo.width * scale), int(photo.height * scale)
    changed = ImageEnhance.Brightness(photo.resize(size)).enhance(draw.uniform(0.9, 1.1))
    if mirrored:
        changed = changed.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    buffer = io.BytesIO()
    changed.save(buffer, "JPEG", quality=75)
    return Image.open(buffer).convert("RGB")


def pair(photo: Image.Image, kind: str, across: float, down: float) -> list[Image.Image]:
    """Two windows shifted by these shares of the photo's size, or the photo and its cropped part."""
    width, height = photo.size
    if kind == "crop":
        return [photo, photo.crop((int(across * width), int(down * height), width, height))]
    part = int(width / (1 + across)), int(height / (1 + down))
    last = photo.crop((width - part[0], height - part[1], width, height))
    return [photo.crop((0, 0, *part)), last]


def copies(paths: list[Path]) -> None:
    """Print the number of detected copies of each kind."""
    draw = np.random.default_rng(0)
    scores: dict[tuple[str, float, str, str], list[float]] = defaultdict(list)
    for path, cut, way in itertools.product(paths, CUTS, ("across", "down", "both")):
        photo = opened(path)
        across, down = cut * (way != "down"), cut * (way != "across")
        for kind, mirrored in (("window", False), ("window", True), ("crop", False)):
            first, second = pair(photo, kind, across, down)
            found = shifted(views(first), views(altered(second, draw, mirrored)))
            right = found.score if found.mirrored == mirrored else 0.0
            scores[kind, cut, way, "mirrored" if mirrored else ""].append(right)
    print("kind    cut  way     found          least score")
    for (kind, cut, way, face), values in sorted(scores.items()):
        detected = sum(value > COPY for value in values)
        count = f"{detected} of {len(values)}"
        print(f"{kind:7} {cut:.2f} {way:7} {count:12} {min(values):6.3f} {face}")


def others(paths: list[Path]) -> None:
    """Print the number of pairs of different photos that score as copies."""
    photos: list[Views] = [views(opened(path)) for path in paths]
    scores: dict[str, list[tuple[float, str]]] = defaultdict(list)
    started = time.process_time()
    for one, two in itertools.combinations(range(len(paths)), 2):
        where = "within a subject" if paths[one].parent == paths[two].parent else "across subjects"
        names = (
            f"{paths[one].parent.name}/{paths[one].name} {paths[two].parent.name}/{paths[two].name}"
        )
        scores[where].append((shifted(photos[one], photos[two]).score, names))
    for where, values in scores.items():
        wrong = sum(score > COPY for score, _ in values)
        highest, names = max(values)
        print(f"{where}: {wrong} of {len(values)} above {COPY}, at most {highest:.3f} ({names})")
    spent = time.process_time() - started
    print(f"processor time of a pair: {1000 * spent / sum(map(len, scores.values())):.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--photos", type=int, default=None, help="number of photos to copy; default: all"
    )
    options = parser.parse_args()
    endings = {".jpg", ".jpeg", ".png", ".webp"}
    paths = sorted(path for path in options.folder.glob("*/*") if path.suffix.lower() in endings)
    step = max(1, len(paths) // (options.photos or len(paths)))
    others(paths)
    copies(paths[::step])


if __name__ == "__main__":
    main()
