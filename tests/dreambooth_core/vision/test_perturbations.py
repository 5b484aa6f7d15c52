"""Changes of a photo: what each changes, and what it keeps."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.vision import perturbations
from dreambooth_core.vision.detectors import Region

PHOTO = Image.new("RGB", (64, 48), (200, 40, 40))
PHOTO.paste((40, 60, 200), (0, 0, 20, 48))
REGION = Region((30, 10, 50, 40))
AREA = perturbations.area_of(PHOTO, REGION)


@pytest.mark.parametrize("degrees", [10, 30, 60, 180])
def test_only_the_hue_of_the_subject_is_rotated(degrees):
    changed = perturbations.with_hue(PHOTO, degrees, AREA)
    hues = [
        colorsys.rgb_to_hsv(*(channel / 255 for channel in image.getpixel((40, 20))))
        for image in (PHOTO, changed)
    ]
    assert (hues[1][0] - hues[0][0]) % 1 * 360 == pytest.approx(degrees, abs=2)
    assert hues[1][1:] == pytest.approx(hues[0][1:], abs=0.02)
    np.testing.assert_array_equal(np.asarray(changed)[~AREA], np.asarray(PHOTO)[~AREA])
    assert perturbations.change_of(PHOTO, changed, AREA) > 4


def test_a_plain_background_keeps_the_subject():
    changed = np.asarray(perturbations.on_plain(PHOTO, (1, 2, 3), AREA))
    np.testing.assert_array_equal(changed[AREA], np.asarray(PHOTO)[AREA])
    assert (changed[~AREA] == (1, 2, 3)).all()


def test_without_a_region_the_whole_image_is_the_area():
    assert perturbations.area_of(PHOTO, None).all()
    assert perturbations.change_of(PHOTO, PHOTO, perturbations.area_of(PHOTO, None)) == 0


def test_blur_and_mirror_keep_the_size():
    for change in (perturbations.blurred, perturbations.mirrored):
        changed = change(PHOTO)
        assert changed.size == PHOTO.size
        assert perturbations.change_of(PHOTO, changed, np.ones((48, 64), dtype=bool)) > 0
