"""Copies are detected, other views are not; sharpness falls with blur."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from dreambooth_core.vision.similarity import alike, difference_hash, fingerprint, sharpness

COPY = 0.95


def photograph(seed, side=256):
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
    return Image.fromarray((total * 255 / total.max()).astype(np.uint8))


def cartoon(pose):
    """A 64-pixel robot before a plain wall, rotated and moved by `pose`."""
    big = Image.new("RGB", (256, 256), (240, 200, 60))
    draw = ImageDraw.Draw(big)
    draw.rectangle((88, 90, 168, 200), fill=(40, 90, 200), outline="black", width=4)
    draw.rectangle((104, 40, 152, 86), fill=(40, 90, 200), outline="black", width=4)
    draw.ellipse((112, 52, 124, 64), fill="white")
    draw.ellipse((132, 52, 144, 64), fill="white")
    draw.rectangle((104, 120, 128, 150), fill=(200, 40, 40))
    draw.line((168, 110, 200, 60 + pose * 4), fill="black", width=10)
    turned = big.rotate(pose, Image.Resampling.BICUBIC, fillcolor=(240, 200, 60))
    return turned.resize((64, 64), Image.Resampling.LANCZOS)


def recompressed(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer)


CHANGES = {
    "smaller": lambda image: image.resize((90, 90)),
    "recompressed": recompressed,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "shifted": lambda image: image.crop((20, 12, 256, 256)).resize((256, 256)),
    "rolled": lambda image: Image.fromarray(np.roll(np.asarray(image), (15, 25), (0, 1))),
    "cropped on one side": lambda image: image.crop((0, 0, 240, 256)),
    "mirrored and smaller": lambda image: image.transpose(0).resize((128, 128)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seed", range(3))
def test_copies_score_high_in_both_directions(change, seed):
    original = photograph(seed)
    prints = fingerprint(original), fingerprint(CHANGES[change](original))
    forth, back = alike(*prints), alike(*reversed(prints))
    assert min(forth.score, back.score) > COPY
    assert forth.mirrored == back.mirrored == ("mirrored" in change)


def test_a_shift_is_distinguished_from_a_copy_in_place():
    original = photograph(0)
    assert alike(fingerprint(original), fingerprint(CHANGES["rolled"](original))).moved
    assert not alike(fingerprint(original), fingerprint(CHANGES["recompressed"](original))).moved


def test_different_photographs_score_low():
    prints = [fingerprint(photograph(seed)) for seed in range(8)]
    scores = [alike(a, b).score for i, a in enumerate(prints) for b in prints[:i]]
    assert max(scores) < 0.5


def test_poses_of_a_flat_drawing_are_no_copies():
    prints = [fingerprint(cartoon(pose)) for pose in (-16, -10, -5, 0, 5, 10, 16)]
    scores = [alike(a, b).score for i, a in enumerate(prints) for b in prints[:i]]
    assert max(scores) < COPY


def test_blank_images_match_nothing():
    blank, other = fingerprint(Image.new("RGB", (64, 64), "red")), fingerprint(photograph(0))
    assert alike(blank, blank).score == 0
    assert alike(blank, other).score == 0


def test_sharpness_falls_with_every_blur():
    image = photograph(1)
    radii = (0, 1, 2, 4)
    measured = [sharpness(image.filter(ImageFilter.GaussianBlur(r)), 256) for r in radii]
    assert measured == sorted(measured, reverse=True)
    assert measured[2] < 0.05 * measured[0]


def test_a_blurred_background_barely_lowers_sharpness():
    image = photograph(1)
    portrait = image.filter(ImageFilter.GaussianBlur(6))
    portrait.paste(image.crop((64, 64, 192, 192)), (64, 64))
    assert sharpness(portrait, 256) > 0.5 * sharpness(image, 256)


def test_the_hash_marks_increasing_brightness():
    ramp = Image.fromarray(np.tile(np.arange(0, 252, 4, dtype=np.uint8), (63, 1)))
    assert difference_hash(ramp).all()
    assert not difference_hash(ImageOps.mirror(ramp)).any()
    assert difference_hash(ramp).shape == (64,)
