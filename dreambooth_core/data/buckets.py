"""Aspect-ratio buckets: training sizes, and the crop of a photo for its size.

Sizes are (height, width) in pixels.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from dreambooth_core import config
from dreambooth_core.errors import ConfigError
from dreambooth_core.randomness import integer

Size = tuple[int, int]


class Crop(NamedTuple):
    """A crop of a scaled photo."""

    resized: Size
    """The whole photo's size after scaling."""
    offset: tuple[int, int]
    """Top and left of the crop in the scaled photo, in its pixels."""
    size: Size
    """The crop's size."""


def sizes(resolution: int, step: int, max_ratio: float) -> tuple[Size, ...]:
    """Sizes of at most resolution**2 pixels whose sides are multiples of `step`, the square first.

    For each height the greatest width, in landscape and portrait, with an aspect ratio of at most
    `max_ratio`. Raises `ConfigError` when no side fits.
    """
    edge = resolution // step * step
    if not edge:
        raise ConfigError(
            f"dataset.bucket_step {step} is above model.resolution {resolution}: lower it"
        )
    found = {(edge, edge)}
    for height in range(step, edge + 1, step):
        width = resolution**2 // height // step * step
        if width <= max_ratio * height:
            found |= {(height, width), (width, height)}
    return tuple(sorted(found, key=lambda size: (size != (edge, edge), size)))


def nearest(photo: Size, sizes: Sequence[Size]) -> Size:
    """The size with the nearest aspect ratio in log space; of equally near ones the larger."""
    aspect = _log_aspect(photo)
    return min(
        sizes,
        key=lambda size: (round(abs(_log_aspect(size) - aspect), 9), -math.prod(size), size),
    )


def assigned(photos: Sequence[Size], resolution: int, rules: config.Dataset) -> tuple[Size, ...]:
    """Training size of each photo: the square, or the nearest size with `dataset.buckets`."""
    if not rules.buckets:
        return ((resolution, resolution),) * len(photos)
    known = sizes(resolution, rules.bucket_step, rules.bucket_ratio)
    return tuple(nearest(photo, known) for photo in photos)


def class_sizes(instance: Sequence[Size], count: int) -> tuple[Size, ...]:
    """Sizes of class images 0, 1 ... count - 1: one of each first, then in proportion to the photos.

    A longer result extends a shorter one. Raises `ConfigError` for fewer class images than sizes,
    since each batch has one size.
    """
    share = Counter(instance)
    ranked = sorted(share, key=lambda size: (-share[size], size))
    if count < len(ranked):
        raise ConfigError(
            f"prior.num_class_images {count} is below the {len(ranked)} training sizes of the photos: "
            "raise it, or set dataset.buckets: false"
        )
    given, found = Counter(ranked), list(ranked)
    while len(found) < count:
        # the most underrepresented size; in integers, without rounding
        behind = max(
            ranked, key=lambda size: share[size] * (len(found) + 1) - given[size] * len(instance)
        )
        given[behind] += 1
        found.append(behind)
    return tuple(found)


def crop(photo: Size, size: Size, view: int, digest: str) -> Crop:
    """Crop number `view` of a photo: 0 centred, the others at random offsets.

    The random offsets follow from `digest`, the photo's, and `view`, not from the run's seed, so that
    cached latents are shared by all runs.
    """
    scale = max(size[0] / photo[0], size[1] / photo[1])
    resized = (max(size[0], round(photo[0] * scale)), max(size[1], round(photo[1] * scale)))
    room = (resized[0] - size[0], resized[1] - size[1])
    if view == 0:
        return Crop(resized, (room[0] // 2, room[1] // 2), size)
    top = integer(0, f"crop.top.{digest}", view, room[0] + 1)
    left = integer(0, f"crop.left.{digest}", view, room[1] + 1)
    return Crop(resized, (top, left), size)


def box(photo: Size, cut: Crop) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the crop in the unscaled photo's pixels."""
    down, across = photo[0] / cut.resized[0], photo[1] / cut.resized[1]
    top, left = cut.offset
    return (
        left * across,
        top * down,
        min((left + cut.size[1]) * across, photo[1]),
        min((top + cut.size[0]) * down, photo[0]),
    )


def size_conditioning(
    photo: Size, cut: Crop, mirrored: bool
) -> tuple[int, int, int, int, int, int]:
    """SDXL's size and crop conditioning (Podell et al. 2023, arXiv:2307.01952, section 2.2).

    Original height and width, crop top and left in the scaled photo's pixels, target height and
    width; for a mirrored crop as of the mirrored photo.
    """
    top, left = cut.offset
    if mirrored:
        left = cut.resized[1] - cut.size[1] - left
    return (*photo, top, left, *cut.size)


def _log_aspect(size: Size) -> float:
    return math.log(size[1] / size[0])
