"""Bucket sizes, crops, and the sizes of class images."""

import subprocess
import sys
from collections import Counter

import pytest

from dreambooth_core.config import Dataset
from dreambooth_core.data import buckets
from dreambooth_core.errors import ConfigError


@pytest.mark.parametrize(
    ("resolution", "step", "ratio"),
    [(512, 64, 2.0), (1024, 64, 4.0), (768, 32, 2.0), (64, 8, 1.5), (520, 64, 1.0), (100, 64, 2.0)],
)
def test_sizes_keep_to_area_step_and_ratio(resolution: int, step: int, ratio: float) -> None:
    found = buckets.sizes(resolution, step, ratio)
    edge = resolution // step * step
    assert found[0] == (edge, edge)
    assert len(set(found)) == len(found)
    for height, width in found:
        assert height % step == width % step == 0
        assert height * width <= resolution**2
        assert max(height, width) <= ratio * min(height, width)
        assert (width, height) in found
        # no room for another column of this height
        assert height * (width + step) > resolution**2 or (height, width) == (edge, edge)


def test_sizes_are_those_that_sdxl_was_trained_at() -> None:
    # Podell et al. 2023, appendix I
    assert {(768, 1344), (832, 1216), (896, 1152), (1024, 1024)} <= set(
        buckets.sizes(1024, 64, 2.0)
    )


def test_a_step_wider_than_the_resolution_is_a_wrong_option() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.bucket_step 64"):
        buckets.sizes(32, 64, 2.0)


def test_nearest_compares_ratios_as_ratios() -> None:
    sizes = ((64, 64), (32, 128))
    # 1 : 1.9 is nearer to the square, 1 : 2.1 to 1 : 4; the middle in log space is 1 : 2
    assert buckets.nearest((100, 190), sizes) == (64, 64)
    assert buckets.nearest((100, 210), sizes) == (32, 128)
    assert buckets.nearest((7, 7), ((32, 32), (64, 64))) == (64, 64)


def test_without_buckets_all_are_squares() -> None:
    photos = [(100, 200), (300, 100)]
    assert buckets.assigned(photos, 64, Dataset()) == ((64, 64),) * 2
    rules = Dataset(buckets=True, bucket_step=8)
    assert buckets.assigned(photos, 64, rules) == ((48, 80), (80, 48))


def test_class_images_cover_every_size_and_follow_the_photos() -> None:
    square, wide, tall = (64, 64), (48, 80), (80, 48)
    photos = [square] * 5 + [wide] * 3 + [tall] * 2
    found = buckets.class_sizes(photos, 100)
    assert set(found[:3]) == {square, wide, tall}
    assert Counter(found) == {square: 50, wide: 30, tall: 20}
    for count in range(3, 100):
        assert buckets.class_sizes(photos, count) == found[:count]
        for size, share in Counter(photos).items():
            assert abs(found[:count].count(size) - share / 10 * count) < 1.5
    assert buckets.class_sizes(list(reversed(photos)), 100) == found


def test_fewer_class_images_than_sizes_are_a_wrong_option() -> None:
    with pytest.raises(
        ConfigError, match=r"prior\.num_class_images 1 is below the 2 training sizes"
    ):
        buckets.class_sizes([(64, 64), (48, 80)], 1)


@pytest.mark.parametrize("photo", [(300, 400), (400, 300), (65, 64), (1001, 333), (64, 64)])
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (96, 40)])
def test_a_crop_is_inside_and_touches_two_sides(
    photo: tuple[int, int], size: tuple[int, int]
) -> None:
    for view in range(8):
        cut = buckets.crop(photo, size, view, "digest")
        assert cut == buckets.crop(photo, size, view, "digest")
        assert all(
            0 <= start <= whole - part
            for start, whole, part in zip(cut.offset, cut.resized, size, strict=True)
        )
        assert any(whole == part for whole, part in zip(cut.resized, size, strict=True))
        left, top, right, bottom = buckets.box(photo, cut)
        assert 0 <= left < right <= photo[1]
        assert 0 <= top < bottom <= photo[0]


def test_the_first_view_is_centred_and_the_others_random() -> None:
    middle = buckets.crop((100, 300), (50, 50), 0, "a")
    assert middle == buckets.Crop((50, 150), (0, 50), (50, 50))
    offsets = [buckets.crop((100, 300), (50, 50), view, "a").offset[1] for view in range(1, 200)]
    assert min(offsets) < 5
    assert max(offsets) > 95
    assert offsets != [
        buckets.crop((100, 300), (50, 50), view, "b").offset[1] for view in range(199)
    ]


def test_size_conditioning_is_in_the_scaled_photos_pixels() -> None:
    cut = buckets.Crop((50, 150), (0, 20), (50, 60))
    assert buckets.size_conditioning((100, 300), cut, mirrored=False) == (100, 300, 0, 20, 50, 60)
    # in the mirrored photo the crop begins at 150 - 60 - 20
    assert buckets.size_conditioning((100, 300), cut, mirrored=True) == (100, 300, 0, 70, 50, 60)


def test_buckets_do_not_import_torch() -> None:
    script = "import sys, dreambooth_core.data.buckets as b; b.crop((9, 9), (8, 4), 1, 'x'); "
    script += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
