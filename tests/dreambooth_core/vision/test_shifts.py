"""Partial copies are detected, other views of the same subject are not."""

import io
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from dreambooth_core.vision.shifts import COPY, shifted, views
from examples.small_world.corpus import view

DEFAULT = Path(__file__).parents[4] / "shared" / "dreambench"
REAL = Path(os.environ.get("DREAMBENCH_DIR", DEFAULT))
real = pytest.mark.skipif(not REAL.is_dir(), reason="set DREAMBENCH_DIR to a folder of subjects")


def photograph(seed: int, side: int = 360) -> Image.Image:
    """Photo-like texture: a sum of noise at several scales, weaker at finer ones."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 255, (n, n, 3)).astype(np.uint8)).resize(
                (side, side), Image.Resampling.BICUBIC
            ),
            dtype=np.float32,
        )
        / n**0.5
        for n in (4, 8, 16, 32, 64, 128, 256)
    ]
    total = sum(layers)
    return Image.fromarray((total * 255 / np.max(total)).astype(np.uint8))


def altered(image: Image.Image, mirrored: bool) -> Image.Image:
    """Smaller, darker, recompressed."""
    small = image.resize((image.width * 3 // 5, image.height * 3 // 5))
    changed = ImageEnhance.Brightness(small).enhance(0.92)
    if mirrored:
        changed = changed.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    buffer = io.BytesIO()
    changed.save(buffer, "JPEG", quality=75)
    return Image.open(buffer).convert("RGB")


def windows(image: Image.Image, across: float, down: float) -> tuple[Image.Image, Image.Image]:
    """Two windows of equal size, the second shifted by these shares of it."""
    width, height = int(image.width / (1 + across)), int(image.height / (1 + down))
    first = image.crop((0, 0, width, height))
    return first, image.crop((image.width - width, image.height - height, *image.size))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("across", "down"), [(0.33, 0), (0, 0.45), (0.33, 0.33), (0.45, 0.45)])
def test_windows_of_one_picture_are_copies(across: float, down: float, mirrored: bool) -> None:
    first, second = windows(photograph(0), across, down)
    match = shifted(views(first), views(altered(second, mirrored)))
    assert match.score > 0.9
    assert match.mirrored == mirrored
    assert match.overlap == pytest.approx((1 - across) * (1 - down), abs=0.05)


@pytest.mark.parametrize("cut", [0.2, 0.45])
def test_a_part_is_a_copy_of_the_whole_in_both_directions(cut: float) -> None:
    whole = photograph(1)
    part = whole.crop((int(cut * whole.width), int(cut * whole.height), *whole.size))
    two = views(whole), views(altered(part, mirrored=False))
    assert min(shifted(*two).score, shifted(*reversed(two)).score) > 0.9


def test_at_scale_1_only_windows_are_found_and_crops_are_not() -> None:
    whole = photograph(2)
    assert shifted(*map(views, windows(whole, 0.33, 0.33)), scales=1).score > COPY
    assert shifted(views(whole), views(whole.crop((160, 160, 360, 360))), scales=1).score < COPY


def test_other_images_score_low() -> None:
    found = [views(photograph(seed)) for seed in range(5)]
    assert max(shifted(a, b).score for a, b in itertools.combinations(found, 2)) < 0.5


def test_plain_images_and_single_horizons_match_nothing() -> None:
    blank = Image.new("RGB", (128, 128), "red")
    seas = []
    for height in (40, 60, 80):
        sea = blank.copy()
        ImageDraw.Draw(sea).rectangle((0, height, 128, 128), fill="blue")
        seas.append(sea)
    for one, two in itertools.combinations([views(one) for one in (blank, blank, *seas)], 2):
        assert shifted(one, two).score < COPY


def test_views_of_a_rendered_subject_are_no_copies() -> None:
    for subject in (0, 1):
        drawn = [Image.fromarray(view("test", subject, number)) for number in range(5)]
        pairs = itertools.combinations(map(views, drawn), 2)
        assert max(shifted(a, b).score for a, b in pairs) < COPY


@real
def test_windows_of_real_photos_are_copies_and_photos_of_one_subject_are_not() -> None:
    """`benchmarks/shifted_copies.py` covers every photo, cut and pair."""
    for subject in sorted(path for path in REAL.iterdir() if path.is_dir()):
        photos = [Image.open(path).convert("RGB") for path in sorted(subject.glob("*.jpg"))[:3]]
        others = itertools.combinations(map(views, photos), 2)
        assert max(shifted(a, b).score for a, b in others) < COPY, subject.name
        first, second = windows(photos[0], 0.33, 0)
        assert shifted(views(first), views(altered(second, mirrored=False))).score > COPY, subject
