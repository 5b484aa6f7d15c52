"""Pictures for tests of the packaged vision models: a drawn disc, and a photo that scikit-learn ships."""

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def disc() -> tuple[Image.Image, NDArray[np.bool_]]:
    """An orange disc on a blue gradient, 320 x 240, and its pixels."""
    rows, columns = np.mgrid[0:240, 0:320]
    pixels = np.stack([rows * 0.2 + 20, columns * 0.2 + 40, 180 - rows * 0.3], -1)
    inside = (rows - 130) ** 2 + (columns - 180) ** 2 < 60**2
    green = 130 + 0.3 * (columns[inside] - 180)
    pixels[inside] = np.stack([np.full_like(green, 250), green, np.full_like(green, 30)], -1)
    return Image.fromarray(pixels.astype(np.uint8)), inside


def palace() -> Image.Image:
    """A photo of a palace in Beijing: scikit-learn, which MLflow needs, ships it (CC BY 2.0)."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    with Image.open(Path(spec.origin).parent / "datasets" / "images" / "china.jpg") as opened:
        return opened.convert("RGB")
