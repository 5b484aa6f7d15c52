"""Crops and images without the subject: exact to the pixel and independent of each other."""

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageOps

from dreambooth_core.config import Detector as Rules
from dreambooth_core.vision import crops
from dreambooth_core.vision.crops import (
    crop,
    detector_digest,
    region_of_mask,
    regions,
    without_subject,
)
from dreambooth_core.vision.detectors import Region

RED = (255, 0, 0)


def noise(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 255, (height, width, 3), dtype=np.uint8))


def marked(box: tuple[int, int, int, int], width: int = 60, height: int = 40) -> Region:
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return Region(box, mask)


def repainted(image: Image.Image, box: tuple[int, int, int, int], inside: bool) -> Image.Image:
    """`image` with other pixels inside a box, or outside it."""
    mask = Image.new("L", image.size, 0 if inside else 255)
    mask.paste(255 if inside else 0, box)
    return Image.composite(noise(*image.size, seed=9), image, mask)


BOXES = {
    "in the middle": (20, 10, 40, 30),
    "wide": (10, 15, 50, 20),
    "high, odd": (20, 3, 27, 36),
    "in a corner": (0, 0, 12, 9),
    "in the other corner": (50, 33, 60, 40),
    "one pixel": (59, 0, 60, 1),
    "one column": (7, 0, 8, 40),
    "everything": (0, 0, 60, 40),
}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
@pytest.mark.parametrize("margin", [0, 0.12, 0.5])
class TestGeometry:
    def test_a_square_with_the_box_centred_pixel_by_pixel(self, box, margin):
        image, (left, top, right, bottom) = noise(), box
        cut = crop(image, Region(box), margin)
        width, height = right - left, bottom - top
        side = max(width, height) + 2 * round(margin * max(width, height))
        assert (cut.mode, cut.size) == ("RGB", (side, side))
        x, y = (side - width) // 2, (side - height) // 2
        middle = cut.crop((x, y, x + width, y + height))
        assert middle.tobytes() == image.crop(box).tobytes()

    def test_pixels_beyond_the_margin_have_no_effect(self, box, margin):
        image = noise()
        rim = round(margin * max(box[2] - box[0], box[3] - box[1]))
        near = (
            max(0, box[0] - rim),
            max(0, box[1] - rim),
            min(60, box[2] + rim),
            min(40, box[3] + rim),
        )
        other = repainted(image, near, inside=False)
        assert (
            crop(other, Region(box), margin).tobytes() == crop(image, Region(box), margin).tobytes()
        )

    def test_missing_pixels_have_one_colour(self, box, margin):
        """The mean colour of the cut's edge."""
        cut = np.asarray(crop(noise(), Region(box), margin))
        rim = round(margin * max(box[2] - box[0], box[3] - box[1]))
        kept = np.asarray(
            noise().crop(
                (
                    max(0, box[0] - rim),
                    max(0, box[1] - rim),
                    min(60, box[2] + rim),
                    min(40, box[3] + rim),
                )
            )
        )
        sides = np.concatenate([kept[0], kept[-1], kept[:, 0], kept[:, -1]])
        fill = sides.mean(axis=0).round().astype(np.uint8)
        flat = int((cut == fill).all(axis=2).sum())
        by_chance = int((kept == fill).all(axis=2).sum())
        assert flat - by_chance == cut.shape[0] * cut.shape[1] - kept.shape[0] * kept.shape[1]


def test_the_margin_shows_the_image_within_its_bounds():
    image = noise()
    assert crop(image, Region((20, 10, 40, 30)), 0.25).tobytes() == (
        image.crop((15, 5, 45, 35)).tobytes()
    )


def test_a_mirrored_picture_gives_the_mirrored_crop():
    image, box = noise(), (4, 10, 24, 20)
    turned = (60 - 24, 10, 60 - 4, 20)
    assert crop(ImageOps.mirror(image), Region(turned)).tobytes() == (
        ImageOps.mirror(crop(image, Region(box))).tobytes()
    )


def test_a_subject_fills_the_same_share_of_its_crop_at_any_size():
    small = noise()
    large = small.resize((180, 120), Image.Resampling.NEAREST)
    of_small, of_large = (
        crop(small, Region((10, 0, 34, 30)), 0.2),
        crop(large, Region((30, 0, 102, 90)), 0.2),
    )
    enlarged = of_small.resize(of_large.size, Image.Resampling.NEAREST)
    assert of_large.size == (3 * of_small.width, 3 * of_small.height)
    difference = np.asarray(enlarged).astype(int) - np.asarray(of_large).astype(int)
    assert np.abs(difference).max() <= 1  # the mean of a longer edge may round the other way


def test_a_grey_image_is_cropped_as_rgb():
    assert crop(noise().convert("L"), Region((0, 0, 9, 9))).mode == "RGB"
    assert without_subject(noise().convert("L"), Region((0, 0, 9, 9))).mode == "RGB"


class TestSurroundings:
    @pytest.mark.parametrize("region", [Region((20, 10, 40, 30)), marked((20, 10, 40, 30))])
    def test_the_subjects_pixels_have_no_effect(self, region):
        image = noise()
        other = repainted(image, region.box, inside=True)
        assert other.tobytes() != image.tobytes()
        assert without_subject(other, region).tobytes() == without_subject(image, region).tobytes()

    def test_exactly_the_box_is_painted_over_in_the_mean_of_the_rest(self):
        image, (left, top, right, bottom) = noise(), (20, 10, 40, 30)
        pixels = np.asarray(image).copy()
        rest = np.ones((40, 60), dtype=np.bool_)
        rest[top:bottom, left:right] = False
        pixels[top:bottom, left:right] = pixels[rest].mean(axis=0).round()
        assert (
            without_subject(image, Region((left, top, right, bottom))).tobytes() == pixels.tobytes()
        )

    def test_the_mask_and_its_fringe_are_painted_over_but_not_the_box(self):
        mask = np.zeros((128, 128), dtype=np.bool_)
        mask[40, 20:100] = mask[40:100, 60] = True  # a T
        image = noise(128, 128)
        changed = (
            np.asarray(without_subject(image, Region.around(mask))) != np.asarray(image)
        ).any(axis=2)
        reached = np.zeros_like(mask)
        reached[38:43, 18:102] = reached[38:102, 58:63] = True
        assert not changed[~reached].any()
        assert changed[reached].mean() > 0.99  # a noisy pixel may be the mean by chance

    def test_without_surroundings_it_is_grey(self):
        everything = without_subject(noise(), Region((0, 0, 60, 40)))
        assert everything.getcolors() == [(2400, crops.GREY)]
        assert without_subject(noise(), marked((0, 0, 60, 40))).tobytes() == everything.tobytes()


class TestMasks:
    def test_pixels_of_at_least_half_white_are_the_subject(self):
        mask = Image.new("L", (60, 40), 127)
        mask.paste(128, (3, 5, 8, 39))
        found = region_of_mask(mask)
        assert found.box == (3, 5, 8, 39)
        np.testing.assert_array_equal(found.mask, marked((3, 5, 8, 39)).mask)

    def test_the_last_row_and_column_count(self):
        mask = Image.new("L", (60, 40))
        mask.putpixel((59, 39), 255)
        assert region_of_mask(mask).box == (59, 39, 60, 40)

    def test_an_empty_mask_has_no_region(self):
        assert region_of_mask(Image.new("L", (60, 40), 127)) is None


class RedDetector:
    """Detects pure red and records the images it gets."""

    def __init__(self) -> None:
        self.images: list[Image.Image] = []

    def find(self, images: Sequence[Image.Image], noun: str) -> list[Region | None]:
        self.images += images
        return [Region.around((np.asarray(image) == RED).all(axis=2)) for image in images]


def with_red(box: tuple[int, int, int, int]) -> Image.Image:
    image = noise()
    image.paste(RED, box)
    return image


class TestRegions:
    def test_masks_take_precedence_over_the_detector(self):
        images = [with_red((1, 2, 9, 9)), with_red((3, 4, 30, 20)), noise(), noise()]
        white = Image.new("L", (60, 40))
        white.paste(255, (50, 30, 55, 35))
        detector = RedDetector()
        found = regions(detector, images, "robot", [white, None, None, Image.new("L", (60, 40))])
        assert [region and region.box for region in found] == [
            (50, 30, 55, 35),
            (3, 4, 30, 20),
            None,
            None,
        ]
        assert detector.images == images[1:]

    def test_without_a_detector_only_masks_give_regions(self):
        white = Image.new("L", (60, 40), 255)
        found = regions(None, [noise(), noise()], "robot", [None, white])
        assert [region and region.box for region in found] == [None, (0, 0, 60, 40)]
        assert regions(None, [noise()], "robot") == [None]

    def test_a_mask_of_another_size_is_resized_to_the_image(self):
        mask = Image.new("L", (600, 400))
        mask.paste(255, (100, 100, 300, 200))
        (found,) = regions(None, [noise()], "robot", [mask])
        assert found.mask.shape == (40, 60)
        assert np.abs(np.array(found.box) - (10, 10, 30, 20)).max() <= 1

    def test_the_numbers_of_masks_and_images_must_agree(self):
        with pytest.raises(ValueError, match="argument"):
            regions(None, [noise()], "robot", [])


def test_the_digest_of_a_detector_depends_on_kind_and_files(tmp_path):
    (tmp_path / "weights").write_bytes(b"1")
    rules = Rules(kind="segmenter", model=str(tmp_path))
    first = detector_digest(rules)
    assert first == detector_digest(rules.model_copy())
    assert first != detector_digest(rules.model_copy(update={"kind": "detector"}))
    (tmp_path / "weights").write_bytes(b"2")
    assert first != detector_digest(rules)
    assert detector_digest(Rules()) is None
