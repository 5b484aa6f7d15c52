"""Measures of the shipped detector: overlap with true masks, and identity accuracy on its crops."""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import binomtest

from dreambooth_core.config import Detector as DetectorConfig
from dreambooth_core.vision.crops import crop
from dreambooth_core.vision.detectors import Detector, Region, load_detector
from dreambooth_core.vision.encoders import ImageEncoder
from examples.small_world.render import render
from examples.small_world.shapes import CLASSES
from examples.small_world.train_detector import autoencode, render_masked
from examples.small_world.world import BACKGROUNDS, Identity, Scene, random_identity, random_scene

HERE = Path(__file__).parent
SPLIT = "check finder"
View = tuple[Identity, Scene]


class Triplet(NamedTuple):
    """A view of a subject, the same subject on another background, another one in the first view's scene."""

    anchor: View
    positive: View
    negative: View


class TripletAccuracy(NamedTuple):
    """Share of triplets whose positive is nearer to the anchor than their negative is."""

    whole: float
    """On whole images."""
    crops: float
    """On crops; a triplet with an image without a detected subject counts as wrong."""
    p: float
    """p-value of a two-sided sign test on the triplets where the two disagree."""


def shipped(folder: Path = HERE / "detector") -> Detector:
    detector = load_detector(DetectorConfig(kind="segmenter", model=str(folder)))
    assert detector is not None
    return detector


def overlap(detector: Detector, vae: Any = None, count: int = 200) -> dict[str, float]:
    """Mean IoU of detected and true masks and boxes, and share of images with a detected subject.

    On `count` held-out renders, half of them with an accessory, encoded and decoded by `vae` if given;
    an image without a detected subject has an IoU of 0.
    """
    masked = render_masked(SPLIT, count)
    pixels = masked.images if vae is None else autoencode(vae, masked.images, noise=0)
    found = detector.find([Image.fromarray(image) for image in pixels], "subject")
    truth = [Region.around(mask) for mask in masked.masks]
    return {
        "mask": _mean(_mask_iou(a, b) for a, b in zip(found, truth, strict=True)),
        "box": _mean(_box_iou(a, b) for a, b in zip(found, truth, strict=True)),
        "found": _mean(region is not None for region in found),
    }


def triplet(index: int) -> Triplet:
    """The `index`-th triplet, without accessories; anchor and negative share their scene."""
    rng = random.Random(f"{SPLIT}/triple/{index}")
    noun = rng.choice(list(CLASSES))
    subject, other = random_identity(rng, noun), random_identity(rng, noun)
    scene = random_scene(rng, accessory_share=0)
    others = [name for name in BACKGROUNDS if name != scene.background]
    elsewhere = random_scene(rng, rng.choice(others), accessory_share=0)
    return Triplet((subject, scene), (subject, elsewhere), (other, scene))


def triplet_accuracy(
    detector: Detector, encoder: ImageEncoder, kind: str, count: int = 200
) -> TripletAccuracy:
    """Accuracy of an encoder on whole images and on the detector's crops; `kind`: `clip` or `identity`."""
    images = [render(*view) for index in range(count) for view in triplet(index)]
    regions = detector.find(images, "subject")
    cropped = [i if r is None else crop(i, r) for i, r in zip(images, regions, strict=True)]
    found = np.array([region is not None for region in regions]).reshape(-1, 3).all(axis=1)
    whole, crops = _nearer(encoder, kind, images), _nearer(encoder, kind, cropped) & found
    gained, lost = int((crops & ~whole).sum()), int((whole & ~crops).sum())
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return TripletAccuracy(float(whole.mean()), float(crops.mean()), p)


def _nearer(encoder: ImageEncoder, kind: str, images: Sequence[Image.Image]) -> NDArray[np.bool_]:
    """Per triplet, whether the positive is nearer to the anchor than the negative is."""
    embed = encoder.clip_images if kind == "clip" else encoder.identity_images
    rows = embed(images).reshape(len(images) // 3, 3, -1)
    anchor, positive, negative = rows[:, 0], rows[:, 1], rows[:, 2]
    return np.asarray((anchor * positive).sum(axis=1) > (anchor * negative).sum(axis=1))


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


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
