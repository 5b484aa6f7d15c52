"""How well the shipped finder finds, and what cropping by it is good for: figures for the bar."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import binomtest

from dreambooth_core.config import Detector as Rules
from dreambooth_core.vision.crops import crop
from dreambooth_core.vision.detectors import Detector, Region, load_detector
from dreambooth_core.vision.encoders import ImageEncoder
from examples.small_world.render import render
from examples.small_world.shapes import CLASSES
from examples.small_world.train_finder import rendered, softened
from examples.small_world.world import BACKGROUNDS, Identity, Scene, random_identity, random_scene

HERE = Path(__file__).parent
SPLIT = "check finder"
Drawn = tuple[Identity, Scene]


class Triple(NamedTuple):
    """A subject, the same one elsewhere, and another of its class in the first one's very place."""

    anchor: Drawn
    same: Drawn
    impostor: Drawn


class Told(NamedTuple):
    """Shares of triples in which the subject elsewhere is nearer to the anchor than the impostor is."""

    whole: float
    """By whole pictures."""
    crops: float
    """By crops; a triple in which a subject was not found counts as wrong."""
    p: float
    """Of a sign test on the triples that the two do not agree in, two-sided."""


def shipped(folder: Path = HERE / "finder") -> Detector:
    finder = load_detector(Rules(kind="segmenter", model=str(folder)))
    assert finder is not None
    return finder


def overlap(finder: Detector, vae: Any = None, count: int = 200) -> dict[str, float]:
    """Mean IoU of masks and of boxes with the truth on fresh renders, through `vae` when given.

    Half of the renders wear something; nothing found counts as 0.
    """
    marked = rendered(SPLIT, count)
    pixels = marked.images if vae is None else softened(vae, marked.images, noise=0)
    found = finder.find([Image.fromarray(image) for image in pixels], "subject")
    truth = [Region.around(mask) for mask in marked.masks]
    return {
        "mask": _mean([_mask_iou(a, b) for a, b in zip(found, truth, strict=True)]),
        "box": _mean([_box_iou(a, b) for a, b in zip(found, truth, strict=True)]),
        "found": _mean([spot is not None for spot in found]),
    }


def triple(index: int) -> Triple:
    """All three without accessories; the impostor stands, turns and is lit as the anchor does."""
    rng = random.Random(f"{SPLIT}/triple/{index}")
    noun = rng.choice(list(CLASSES))
    subject, other = random_identity(rng, noun), random_identity(rng, noun)
    here = random_scene(rng, accessory_share=0)
    places = [name for name in BACKGROUNDS if name != here.background]
    elsewhere = random_scene(rng, rng.choice(places), accessory_share=0)
    return Triple((subject, here), (subject, elsewhere), (other, here))


def told_apart(finder: Detector, encoder: ImageEncoder, eye: str, count: int = 200) -> Told:
    """Is the subject told from an impostor on its own background? `eye` is `clip` or `identity`."""
    triples = [triple(index) for index in range(count)]
    pictures = [render(*drawn) for three in triples for drawn in three]
    spots = finder.find(pictures, "subject")
    cuts = [p if s is None else crop(p, s) for p, s in zip(pictures, spots, strict=True)]
    found = np.array([spot is not None for spot in spots]).reshape(-1, 3).all(axis=1)
    whole, crops = _nearer(encoder, eye, pictures), _nearer(encoder, eye, cuts) & found
    gained, lost = int((crops & ~whole).sum()), int((whole & ~crops).sum())
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Told(float(whole.mean()), float(crops.mean()), p)


def overlays(images: Sequence[Image.Image], spots: Sequence[Region | None]) -> list[Image.Image]:
    """Pictures to look at: dark where no subject was found."""
    seen = []
    for image, spot in zip(images, spots, strict=True):
        pixels = np.asarray(image.convert("RGB")).copy()
        mask = np.zeros(pixels.shape[:2], np.bool_) if spot is None else spot.mask
        pixels[~np.asarray(mask)] //= 4
        seen.append(Image.fromarray(pixels))
    return seen


def _nearer(encoder: ImageEncoder, eye: str, pictures: Sequence[Image.Image]) -> NDArray[np.bool_]:
    look = encoder.clip_images if eye == "clip" else encoder.identity_images
    rows = look(pictures).reshape(len(pictures) // 3, 3, -1)
    anchor, same, impostor = rows[:, 0], rows[:, 1], rows[:, 2]
    return np.asarray((anchor * same).sum(axis=1) > (anchor * impostor).sum(axis=1))


def _mask_iou(found: Region | None, truth: Region | None) -> float:
    if found is None or truth is None or found.mask is None or truth.mask is None:
        return 0.0
    return float((found.mask & truth.mask).sum() / (found.mask | truth.mask).sum())


def _box_iou(found: Region | None, truth: Region | None) -> float:
    if found is None or truth is None:
        return 0.0
    a, b = found.box, truth.box
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0, wide) * max(0, high)
    return both / (_area(a) + _area(b) - both)


def _area(box: tuple[int, int, int, int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
