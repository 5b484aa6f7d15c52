"""Input that is fine, into which a case puts what is not: photos, a base model."""

import io
import shutil
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

TEMPLATE = Path("template")
"""Name of the folder with the built base, below the folder of all cases."""
GOOD = 4


@cache
def picture(seed: int = 0, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Coloured blots, different enough from other seeds' that they are no copies."""
    draw = np.random.default_rng(seed)
    blots = draw.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize(size, Image.Resampling.BICUBIC)


@cache
def encoded(form: str = "PNG", seed: int = 0, size: tuple[int, int] = (64, 64)) -> bytes:
    """A good photo as a file of that format."""
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, form)
    return buffer.getvalue()


def photos(folder: Path, count: int = GOOD, name: str = "photos") -> Path:
    """A folder of good photos: `0.png` and so on."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        (place / f"{index}.png").write_bytes(encoded(seed=index))
    return place


def base(folder: Path) -> Path:
    """A copy of the tiny base with random weights, as `base`."""
    place = folder / "base"
    shutil.copytree(_template(folder), place)
    return place


def _template(folder: Path) -> Path:
    for parent in folder.parents:
        if (parent / TEMPLATE / "base").is_dir():
            return parent / TEMPLATE / "base"
    raise FileNotFoundError("the runner has built no base")
