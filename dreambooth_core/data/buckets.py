"""Sizes that photos of many shapes train at, and the part of a photo that is seen at its size.

A size is (height, width) in pixels everywhere.
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
    """A photo scaled until it covers a size, and cut to it."""

    resized: Size
    """The whole photo's size after scaling."""
    place: tuple[int, int]
    """Top and left of the cut in the scaled photo, in its pixels."""
    size: Size
    """What remains."""


def sizes(resolution: int, step: int, max_ratio: float) -> tuple[Size, ...]:
    """Sizes with sides that are multiples of `step`, never above resolution**2 pixels of area.

    For each height the widest such width, each size lying and standing, no side longer than
    `max_ratio` times the other; the square first. Raises `ConfigError` when no side fits.
    """
    edge = resolution // step * step
    if not edge:
        raise ConfigError(
            f"dataset.bucket_step {step} leaves no size within model.resolution {resolution}: "
            "lower it"
        )
    found = {(edge, edge)}
    for height in range(step, edge + 1, step):
        width = resolution**2 // height // step * step
        if width <= max_ratio * height:
            found |= {(height, width), (width, height)}
    return tuple(sorted(found, key=lambda size: (size != (edge, edge), size)))


def nearest(photo: Size, sizes: Sequence[Size]) -> Size:
    """The size whose aspect ratio is nearest to the photo's, in log space; the larger of two."""
    aspect = _log_aspect(photo)
    return min(
        sizes,
        key=lambda size: (round(abs(_log_aspect(size) - aspect), 9), -math.prod(size), size),
    )


def assigned(photos: Sequence[Size], resolution: int, rules: config.Dataset) -> tuple[Size, ...]:
    """The size that each photo trains at: the one square, or with `buckets` the nearest size."""
    if not rules.buckets:
        return ((resolution, resolution),) * len(photos)
    known = sizes(resolution, rules.bucket_step, rules.bucket_ratio)
    return tuple(nearest(photo, known) for photo in photos)


def class_sizes(instance: Sequence[Size], count: int) -> tuple[Size, ...]:
    """The size of class image 0, 1 ... count - 1: one of each first, then in proportion.

    A longer answer extends a shorter one. Raises `ConfigError` when there are fewer class images
    than sizes, since each batch is of one size.
    """
    share = Counter(instance)
    ranked = sorted(share, key=lambda size: (-share[size], size))
    if count < len(ranked):
        raise ConfigError(
            f"prior.num_class_images {count} cannot cover the {len(ranked)} sizes that the photos train at: "
            "set it higher, or dataset.buckets: false"
        )
    given, found = Counter(ranked), list(ranked)
    while len(found) < count:
        # the one that is furthest behind: integers, so that no rounding decides
        behind = max(
            ranked, key=lambda size: share[size] * (len(found) + 1) - given[size] * len(instance)
        )
        given[behind] += 1
        found.append(behind)
    return tuple(found)


def crop(photo: Size, size: Size, view: int, digest: str) -> Crop:
    """Where view number `view` of a photo is cut: 0 in the middle, the others at random places.

    `digest` is the photo's content: what is random follows from it and the view, not from the run,
    so that every run finds the same cuts in the cache.
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
    """Left, top, right and bottom of the cut in the photo's own pixels."""
    down, across = photo[0] / cut.resized[0], photo[1] / cut.resized[1]
    top, left = cut.place
    return (
        left * across,
        top * down,
        min((left + cut.size[1]) * across, photo[1]),
        min((top + cut.size[0]) * down, photo[0]),
    )


def numbers(photo: Size, cut: Crop, mirrored: bool) -> tuple[int, int, int, int, int, int]:
    """What SDXL is told (Podell et al. 2023, arXiv:2307.01952, section 2.2).

    Original height and width, crop top and left in the scaled photo's pixels, target height and
    width; mirrored, as if the photo had been mirrored first.
    """
    top, left = cut.place
    if mirrored:
        left = cut.resized[1] - cut.size[1] - left
    return (*photo, top, left, *cut.size)


def _log_aspect(size: Size) -> float:
    return math.log(size[1] / size[0])
