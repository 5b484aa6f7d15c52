"""Valid inputs that cases damage: photos, a base model."""

import io
import shutil
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

TEMPLATE = Path("template")
"""Folder of the built base, below the folder of all cases."""
GOOD = 4


@cache
def picture(seed: int = 0, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Random coloured blots; images of different seeds are not near copies."""
    draw = np.random.default_rng(seed)
    blots = draw.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize(size, Image.Resampling.BICUBIC)


@cache
def encoded(form: str = "PNG", seed: int = 0, size: tuple[int, int] = (64, 64)) -> bytes:
    """A valid photo, encoded in a format of Pillow."""
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, form)
    return buffer.getvalue()


def photos(folder: Path, count: int = GOOD, name: str = "photos") -> Path:
    """A folder of valid photos, `0.png` and so on."""
    made = folder / name
    made.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        (made / f"{index}.png").write_bytes(encoded(seed=index))
    return made


def base(folder: Path) -> Path:
    """A copy of the tiny base, as `base`."""
    return shutil.copytree(_template(folder), folder / "base")


def _template(folder: Path) -> Path:
    for parent in folder.parents:
        if (parent / TEMPLATE / "base").is_dir():
            return parent / TEMPLATE / "base"
    raise FileNotFoundError("no base was built")
