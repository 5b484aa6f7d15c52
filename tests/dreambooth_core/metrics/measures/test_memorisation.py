"""Near copies: detection, exceptions, and what raises the limit."""

from dataclasses import replace

import numpy as np
from PIL import Image, ImageOps

from dreambooth_core.metrics import Evidence, ImageEmbeddings
from dreambooth_core.metrics.measures.memorisation import copied_photo, measure
from dreambooth_core.vision.detectors import Region

SIDE = 64
BOX = (20, 20, 44, 44)


def scene(seed: int) -> Image.Image:
    """A textured backdrop."""
    draw = np.random.default_rng(seed)
    blots = Image.fromarray(draw.integers(0, 255, (9, 9, 3), dtype=np.uint8))
    return blots.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def with_subject(backdrop: Image.Image, variant: int = 0) -> Image.Image:
    """The backdrop with a centred subject, equal for equal `variant`."""
    picture = backdrop.copy()
    picture.paste(scene(1000 + variant).resize((24, 24)), BOX[:2])
    return picture


def image_set(pictures: list[Image.Image], regions: bool = True) -> ImageEmbeddings:
    return ImageEmbeddings(
        images=pictures, regions=(Region(BOX),) * len(pictures) if regions else None
    )


PHOTOS = [with_subject(scene(number)) for number in range(4)]


def evidence(*generated: Image.Image, regions: bool = True) -> Evidence:
    return Evidence(
        generated=image_set(list(generated), regions),
        photos=image_set(PHOTOS, regions),
        prompts=("p",) * len(generated),
        kinds=("scene",) * len(generated),
    )


def soft(image: Image.Image) -> Image.Image:
    """Blurred with a little noise, as after an autoencoder."""
    small = image.resize((40, 40), Image.Resampling.BICUBIC).resize(image.size)
    noise = np.random.default_rng(0).normal(0, 4, (SIDE, SIDE, 3))
    return Image.fromarray((np.asarray(small) + noise).clip(0, 255).astype(np.uint8))


def test_the_subject_in_new_surroundings_is_no_copy():
    found = measure(evidence(*(soft(with_subject(scene(seed))) for seed in range(10, 16))))
    np.testing.assert_array_equal(found, np.zeros(6))


def test_a_photo_and_its_mirror_image_are_copies():
    again = [soft(PHOTOS[0]), soft(ImageOps.mirror(PHOTOS[1]))]
    for regions in (True, False):
        np.testing.assert_array_equal(measure(evidence(*again, regions=regions)), [1, 1])


def test_a_photos_surroundings_with_another_subject_image_are_a_copy():
    changed = [
        soft(with_subject(scene(2), variant=1)),
        soft(ImageOps.mirror(with_subject(scene(3), 2))),
    ]
    found = evidence(*changed)
    np.testing.assert_array_equal(measure(found), [1, 1])
    assert [copied_photo(found, index) for index in (0, 1)] == [2, 3]


def test_without_a_detector_only_whole_images_are_compared():
    other_variant = soft(with_subject(scene(2), variant=1).rotate(180))
    found = measure(evidence(soft(PHOTOS[0]), other_variant, regions=False))
    np.testing.assert_array_equal(found, [1, 0])
    assert copied_photo(evidence(soft(PHOTOS[3]), regions=False), 0) == 3


def test_without_a_found_subject_only_whole_copies_are_detected():
    found = evidence(soft(PHOTOS[0]), soft(with_subject(scene(10))))
    lost = replace(found, generated=replace(found.generated, regions=(None, None)))
    np.testing.assert_array_equal(measure(lost), [1, np.nan])


def test_an_image_similar_to_the_bases_is_no_copy():
    tuned = soft(with_subject(scene(2), variant=1))
    for base, expected in ((with_subject(scene(2), variant=7), 0), (with_subject(scene(20)), 1)):
        found = replace(evidence(tuned), base=image_set([base]))
        np.testing.assert_array_equal(measure(found), [expected])


def test_the_base_itself_scores_zero():
    found = replace(evidence(PHOTOS[0]), base=image_set([PHOTOS[0]]))
    np.testing.assert_array_equal(measure(replace(found, generated=found.base)), [0])


def near(share: float, other: int) -> Image.Image:
    """Backdrop 5 blended with another: similarity to it 0.92 at 0.25, 0.87 at 0.3."""
    return Image.blend(scene(5), scene(other), share)


def test_the_similarity_of_two_different_photos_raises_the_limit():
    drawn = with_subject(near(0.3, 8), variant=3)
    for second, expected in ((scene(7), 1), (near(0.25, 6), 0)):
        photos = image_set([with_subject(scene(5)), with_subject(second)])
        values = measure(replace(evidence(drawn), photos=photos))
        np.testing.assert_array_equal(values, [expected])


def test_a_duplicate_photo_does_not_raise_the_limit():
    photos = image_set([PHOTOS[2], PHOTOS[2], PHOTOS[0]])
    found = replace(evidence(soft(with_subject(scene(2), variant=1))), photos=photos)
    np.testing.assert_array_equal(measure(found), [1])
