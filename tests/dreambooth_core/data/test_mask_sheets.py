"""The contact sheet of masks, and `dreambooth validate --masks`."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.data.mask_sheets import PAIRS, SIDE
from tests.real_images import disc


@pytest.fixture
def photos(tmp_path):
    """Three photos of a disc; the third has a drawn mask of its left half."""
    folder = tmp_path / "photos"
    folder.mkdir()
    image, _ = disc()
    for index in range(3):
        image.crop((12 * index, 0, image.width, 240)).save(folder / f"{index}.png")
    half = Image.new("L", (image.width - 24, 240))
    half.paste(255, (0, 0, half.width // 2, 240))
    half.save(folder / "2.mask.png")
    return folder


def validate(folder, *words):
    command = [sys.executable, "-m", "dreambooth_core.cli", "validate", folder, *words]
    return subprocess.run([*map(str, command)], capture_output=True, text=True)


def test_each_photo_is_beside_its_mask(photos, tmp_path):
    target = tmp_path / "masks.png"
    done = validate(photos, "--resolution", 64, "--class", "ball", "--masks", target, "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)["masks"]
    assert shown["detector"] == "saliency"
    assert shown["ignores_noun"] is True
    assert [row["mask"] for row in shown["photos"]] == ["detector", "detector", "file"]
    share = np.pi * 60**2 / (320 * 240)
    assert shown["photos"][0]["share"] == pytest.approx(share, rel=0.05)
    assert shown["photos"][2]["share"] == pytest.approx(0.5, abs=0.01)
    sheet = np.asarray(Image.open(target).convert("RGB")).astype(int)
    assert sheet.shape == (SIDE, 2 * PAIRS * SIDE, 3)
    photo, overlay = sheet[:, :SIDE], sheet[:, SIDE : 2 * SIDE]
    inside, outside = (140, 145), (60, 20)  # the disc's middle, a corner of the photo
    assert abs(photo[inside] - overlay[inside]).max() < 10
    assert abs(photo[outside] - overlay[outside]).max() > 40


def test_the_table_says_that_the_noun_is_ignored(photos, tmp_path):
    done = validate(photos, "--resolution", 64, "--class", "ball", "--masks", tmp_path / "m.png")
    assert "ignores the class noun ball" in done.stdout


def test_a_file_in_a_missing_folder_is_refused(photos, tmp_path):
    done = validate(photos, "--resolution", 64, "--masks", tmp_path / "missing" / "m.png")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_noun_check_needs_a_noun(photos):
    done = validate(photos, "--resolution", 64, "--check-noun")
    assert done.returncode == 2
    assert "--check-noun needs the class noun" in done.stderr
