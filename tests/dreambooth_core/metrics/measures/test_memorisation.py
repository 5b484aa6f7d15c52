"""Near copies: what is one, what is none, and what raises the limit."""

from dataclasses import replace

import numpy as np
from PIL import Image, ImageOps

from dreambooth_core.metrics import Evidence, ImageEmbeddings
from dreambooth_core.metrics.measures.memorisation import copied_photo, measure
from dreambooth_core.vision.detectors import Region

SIDE = 64
BOX = (20, 20, 44, 44)


def scene(seed: int) -> Image.Image:
    """A backdrop with structure of its own."""
    draw = np.random.default_rng(seed)
    blots = Image.fromarray(draw.integers(0, 255, (9, 9, 3), dtype=np.uint8))
    return blots.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def with_subject(backdrop: Image.Image, look: int = 0) -> Image.Image:
    """One and the same subject for the same `look`, in the middle."""
    picture = backdrop.copy()
    picture.paste(scene(1000 + look).resize((24, 24)), BOX[:2])
    return picture


def seen(pictures: list[Image.Image], spots: bool = True) -> ImageEmbeddings:
    return ImageEmbeddings(
        pictures=pictures, spots=(Region(BOX),) * len(pictures) if spots else None
    )


PHOTOS = [with_subject(scene(number)) for number in range(4)]


def evidence(*generated: Image.Image, spots: bool = True) -> Evidence:
    return Evidence(
        generated=seen(list(generated), spots),
        photos=seen(PHOTOS, spots),
        prompts=("p",) * len(generated),
        kinds=("scene",) * len(generated),
    )


def soft(image: Image.Image) -> Image.Image:
    """As an autoencoder gives it back: blurred, with a little noise."""
    small = image.resize((40, 40), Image.Resampling.BICUBIC).resize(image.size)
    noise = np.random.default_rng(0).normal(0, 4, (SIDE, SIDE, 3))
    return Image.fromarray((np.asarray(small) + noise).clip(0, 255).astype(np.uint8))


def test_the_subject_in_new_surroundings_is_no_copy():
    found = measure(evidence(*(soft(with_subject(scene(seed))) for seed in range(10, 16))))
    np.testing.assert_array_equal(found, np.zeros(6))


def test_a_photo_again_is_a_copy_and_so_is_its_mirror_image():
    again = [soft(PHOTOS[0]), soft(ImageOps.mirror(PHOTOS[1]))]
    for spots in (True, False):
        np.testing.assert_array_equal(measure(evidence(*again, spots=spots)), [1, 1])


def test_a_photos_surroundings_with_another_look_of_the_subject_are_a_copy():
    changed = [
        soft(with_subject(scene(2), look=1)),
        soft(ImageOps.mirror(with_subject(scene(3), 2))),
    ]
    found = evidence(*changed)
    np.testing.assert_array_equal(measure(found), [1, 1])
    assert [copied_photo(found, place) for place in (0, 1)] == [2, 3]


def test_without_a_finder_only_the_whole_picture_counts():
    other_look = soft(with_subject(scene(2), look=1).rotate(180))
    found = measure(evidence(soft(PHOTOS[0]), other_look, spots=False))
    np.testing.assert_array_equal(found, [1, 0])
    assert copied_photo(evidence(soft(PHOTOS[3]), spots=False), 0) == 3


def test_where_the_subject_is_not_found_only_a_whole_copy_is_known():
    found = evidence(soft(PHOTOS[0]), soft(with_subject(scene(10))))
    lost = replace(found, generated=replace(found.generated, spots=(None, None)))
    np.testing.assert_array_equal(measure(lost), [1, np.nan])


def test_what_the_untouched_base_makes_as_well_is_no_copy():
    tuned = soft(with_subject(scene(2), look=1))
    for base, expected in ((with_subject(scene(2), look=7), 0), (with_subject(scene(20)), 1)):
        found = replace(evidence(tuned), base=seen([base]))
        np.testing.assert_array_equal(measure(found), [expected])


def test_the_base_itself_scores_zero():
    found = replace(evidence(PHOTOS[0]), base=seen([PHOTOS[0]]))
    np.testing.assert_array_equal(measure(replace(found, generated=found.base)), [0])


def near(share: float, other: int) -> Image.Image:
    """Backdrop 5 with a share of another one in it: 0.92 alike to it at 0.25, 0.87 at 0.3."""
    return Image.blend(scene(5), scene(other), share)


def test_what_two_different_photos_reach_is_no_sign_of_a_copy():
    drawn = with_subject(near(0.3, 8), look=3)
    for second, expected in ((scene(7), 1), (near(0.25, 6), 0)):
        photos = seen([with_subject(scene(5)), with_subject(second)])
        values = measure(replace(evidence(drawn), photos=photos))
        np.testing.assert_array_equal(values, [expected])


def test_a_photo_that_is_there_twice_hides_no_copy():
    photos = seen([PHOTOS[2], PHOTOS[2], PHOTOS[0]])
    found = replace(evidence(soft(with_subject(scene(2), look=1))), photos=photos)
    np.testing.assert_array_equal(measure(found), [1])
