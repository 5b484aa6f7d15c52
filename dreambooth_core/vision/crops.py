"""Crops around the subject, and images with the subject removed.

Whole-image identity scores reward a copied background, scores on crops do not; a memorised photo is
detected by its surroundings, since the subject itself is expected to be similar.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pil
from PIL.Image import Image

from dreambooth_core import plugins
from dreambooth_core.digests import digest_json, digest_of_file
from dreambooth_core.vision.detectors import (
    KINDS,
    Detector,
    Region,
    is_remote,
    packaged_weights,
)

if TYPE_CHECKING:
    from dreambooth_core import config

MARGIN = 0.12
"""Margin around the subject's box on every side, relative to the box's longer side."""
FRINGE = 1 / 64
"""Dilation of a mask before it is painted over, relative to the image's longer side: mask edges are
soft, and an outline reveals the subject."""
GREY = (128, 128, 128)


def region_of_mask(mask: Image) -> Region | None:
    """Region of a grey mask's pixels of at least 128; None if there are none."""
    return Region.around(np.asarray(mask.convert("L")) >= 128)


def regions(
    detector: Detector | None,
    images: Sequence[Image],
    noun: str,
    masks: Sequence[Image | None] | None = None,
) -> list[Region | None]:
    """Region of `noun` in each image; None where it is unknown.

    Masks take precedence; the detector gets the images without one, in one call. `masks` has one
    entry per image; a mask of another size is resized to its image.
    """
    given = masks if masks is not None else [None] * len(images)
    found = [_from_mask(image, mask) for image, mask in zip(images, given, strict=True)]
    missing = [index for index, region in enumerate(found) if region is None]
    if detector is None or not missing:
        return found
    detected = detector.find([images[index] for index in missing], noun)
    for index, region in zip(missing, detected, strict=True):
        found[index] = region
    return found


def crop(image: Image, region: Region, margin: float = MARGIN) -> Image:
    """The subject's box with its margin as an RGB square, not resized, the box centred.

    Pixels beyond box and margin, or beyond the image, get the mean colour of the cut's edge: a
    reflection would repeat parts of the subject, and more of the image would add surroundings. The
    side depends on the box alone, so that the subject fills the same share in all crops.
    """
    left, top, right, bottom = region.box
    width, height = right - left, bottom - top
    rim = round(margin * max(width, height))
    side = max(width, height) + 2 * rim
    within = (
        max(0, left - rim),
        max(0, top - rim),
        min(image.width, right + rim),
        min(image.height, bottom + rim),
    )
    cut = image.convert("RGB").crop(within)
    square = pil.new("RGB", (side, side), _mean(_edge(np.asarray(cut))))
    # corner of the cut: corner of the box minus the margin that the image has there
    x = (side - width) // 2 - (left - within[0])
    y = (side - height) // 2 - (top - within[1])
    square.paste(cut, (x, y))
    return square


def without_subject(image: Image, region: Region) -> Image:
    """The image as RGB with `subject_area` in the mean colour of its surroundings.

    A fixed colour would make all images more similar; it is grey only without any surroundings.
    """
    pixels = np.asarray(image.convert("RGB")).copy()
    subject = subject_area(region, pixels.shape[:2])
    rest = pixels[~subject]
    pixels[subject] = _mean(rest) if len(rest) else GREY
    return pil.fromarray(pixels)


def subject_area(region: Region, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """(height, width) of the image, true on the mask dilated by `FRINGE`, or on a box without mask."""
    from scipy.ndimage import maximum_filter

    if region.mask is None:
        left, top, right, bottom = region.box
        box = np.zeros(shape, dtype=np.bool_)
        box[top:bottom, left:right] = True
        return box
    reach = max(1, round(FRINGE * max(shape)))
    return np.asarray(maximum_filter(region.mask, 2 * reach + 1))


def detector_digest(rules: "config.Detector", vision: "config.Vision | None" = None) -> str | None:
    """SHA-256 of a detector's kind and files, or Hub id and commit; None without a detector.

    Of a kind that asks a vision-language model: of its options in `vision` that affect answers.
    """
    from dreambooth_core.vision.encoders import encoder_digest

    if rules.kind is None:
        return None
    if (weights := packaged_weights(rules.kind)) is not None:
        return digest_json({"kind": rules.kind, "weights": digest_of_file(weights)})
    if is_remote(rules):
        model = plugins.load(KINDS, rules.kind).digest(rules, vision)
    else:
        model = encoder_digest(rules.model, rules.revision)
    return digest_json({"kind": rules.kind, "model": model})


def _from_mask(image: Image, mask: Image | None) -> Region | None:
    if mask is None:
        return None
    return region_of_mask(mask if mask.size == image.size else mask.resize(image.size))


def _edge(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The outermost pixels of (height, width, 3) as rows of colours."""
    sides = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    return np.concatenate(sides)


def _mean(colours: NDArray[np.uint8]) -> tuple[int, int, int]:
    red, green, blue = colours.mean(axis=0).round().astype(int).tolist()
    return red, green, blue
