"""The subject alone and the surroundings alone, so that neither is scored for the other.

Whole-image identity scores reward a copied background, scores on crops do not; and a memorised photo is
known by its surroundings, since the subject itself is meant to be alike.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pil
from PIL.Image import Image

from dreambooth_core.digests import digest_json
from dreambooth_core.vision.detectors import Detector, Region

if TYPE_CHECKING:
    from dreambooth_core import config

MARGIN = 0.12
"""Of the longer side of the subject's box, left around it on every side."""
FRINGE = 1 / 64
"""Of the picture's longer side, painted over around a mask: edges are soft, and outlines tell a subject."""
GREY = (128, 128, 128)


def region_of_mask(mask: Image) -> Region | None:
    """Where a grey mask is at least half white; None where it nowhere is."""
    return Region.around(np.asarray(mask.convert("L")) >= 128)


def regions(
    finder: Detector | None,
    images: Sequence[Image],
    noun: str,
    masks: Sequence[Image | None] | None = None,
) -> list[Region | None]:
    """Where `noun` is in each image; None where nobody knows.

    A mask that came with an image counts more than the finder, which is asked about the others in
    one go. `masks` has one entry per image; a mask of another size is stretched over its image.
    """
    given = masks if masks is not None else [None] * len(images)
    found = [_known(image, mask) for image, mask in zip(images, given, strict=True)]
    open_ones = [place for place, spot in enumerate(found) if spot is None]
    if finder is None or not open_ones:
        return found
    answers = finder.find([images[place] for place in open_ones], noun)
    for place, spot in zip(open_ones, answers, strict=True):
        found[place] = spot
    return found


def crop(image: Image, spot: Region, margin: float = MARGIN) -> Image:
    """The subject's box with its margin as an RGB square, not resized; the box is in its middle.

    What the square needs beyond box and margin, or beyond the picture, gets the mean colour of the
    cut's own edge: a flat colour shows no structure that an encoder could take for the subject,
    where a reflection would draw parts of it twice, and more of the picture would bring the
    surroundings back. Sides depend on the box alone, so a subject fills the same share of its crop
    in a photo and in a generated image.
    """
    left, top, right, bottom = spot.box
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
    # where the box's own corner goes, less what lies between it and the cut's
    x = (side - width) // 2 - (left - within[0])
    y = (side - height) // 2 - (top - within[1])
    square.paste(cut, (x, y))
    return square


def without(image: Image, spot: Region) -> Image:
    """The picture as RGB with the subject painted over in the mean colour of its surroundings.

    The mask and a fringe around it, or the whole box where there is no mask. Any constant would be
    alike in all pictures and so make all surroundings alike; only where nothing is left is it grey.
    """
    pixels = np.asarray(image.convert("RGB")).copy()
    subject = covered(spot, pixels.shape[:2])
    rest = pixels[~subject]
    pixels[subject] = _mean(rest) if len(rest) else GREY
    return pil.fromarray(pixels)


def covered(spot: Region, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """(height, width) of the spot's picture, true on the subject and a fringe around it.

    The whole box where there is no mask, without a fringe.
    """
    from scipy.ndimage import maximum_filter

    if spot.mask is None:
        left, top, right, bottom = spot.box
        box = np.zeros(shape, dtype=np.bool_)
        box[top:bottom, left:right] = True
        return box
    reach = max(1, round(FRINGE * max(shape)))
    return np.asarray(maximum_filter(spot.mask, 2 * reach + 1))


def detector_digest(rules: "config.Detector") -> str | None:
    """What names a finder's content, as `encoder_digest` does an encoder's; None without one."""
    from dreambooth_core.vision.encoders import encoder_digest

    if rules.kind is None:
        return None
    return digest_json({"kind": rules.kind, "model": encoder_digest(rules.model, rules.revision)})


def _known(image: Image, mask: Image | None) -> Region | None:
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
