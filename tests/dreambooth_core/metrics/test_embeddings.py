"""What is seen of stored pictures: as encoder and crop say, once, and only what can be seen."""

import numpy as np
import pytest
from PIL import Image as Pillow

from dreambooth_core.config import Config
from dreambooth_core.data.images import encode_png
from dreambooth_core.errors import ConfigError
from dreambooth_core.metrics.embeddings import ImageEmbedder, StoredImages
from dreambooth_core.storage.blobs import put_blob
from dreambooth_core.storage.records import Image
from dreambooth_core.storage.stores import Store
from dreambooth_core.vision.crops import crop, region_of_mask
from dreambooth_core.vision.encoders import ImageEncoder

WHOLE, CROP = ("identity", "whole"), ("identity", "crop")


def picture(seed: int) -> Pillow.Image:
    draw = np.random.default_rng(seed)
    return Pillow.fromarray(draw.integers(0, 255, (48, 48, 3), dtype=np.uint8))


def mask_of(left: int, top: int) -> Pillow.Image:
    mask = np.zeros((48, 48), dtype=np.uint8)
    mask[top : top + 20, left : left + 12] = 255
    return Pillow.fromarray(mask)


def stored(store: Store, seed: int, mask: Pillow.Image | None = None) -> Image:
    return Image(
        name=f"{seed}.png",
        blob=put_blob(store, encode_png(picture(seed))),
        mask=None if mask is None else put_blob(store, encode_png(mask)),
    )


@pytest.fixture
def config(tiny_config: Config) -> Config:
    return tiny_config


@pytest.fixture
def finding(config: Config) -> Config:
    """A config whose finder is on no machine: only masks say where a subject is."""
    finder = config.evaluation.detector.model_copy(update={"kind": "detector", "model": "no/where"})
    rules = config.evaluation.model_copy(update={"detector": finder})
    return config.model_copy(update={"evaluation": rules})


def test_whole_pictures_are_seen_as_the_encoders_see_them(config, file_store):
    images = [stored(file_store, seed) for seed in range(3)]
    seen = ImageEmbedder(config, file_store).see(images, "robot", [WHOLE, ("clip", "whole"), CROP])
    rules = config.evaluation
    shown = [picture(seed) for seed in range(3)]
    by_eye = ImageEncoder(rules.identity, None).identity_images(shown)
    np.testing.assert_array_equal(seen.by(WHOLE), by_eye)
    np.testing.assert_array_equal(
        seen.by(("clip", "whole")), ImageEncoder(rules.clip, None).clip_images(shown)
    )
    assert seen.digests == tuple(image.blob.sha256 for image in images)
    assert seen.spots is None
    assert seen.by(CROP) is None


def test_a_subject_is_seen_alone_where_a_mask_says_it_is(finding, file_store):
    mask = mask_of(10, 5)
    images = [stored(file_store, 0, mask), stored(file_store, 1, mask_of(30, 20))]
    seen = ImageEmbedder(finding, file_store).see(images, "robot", [WHOLE, CROP])
    alone = crop(picture(0), region_of_mask(mask))
    expected = ImageEncoder(finding.evaluation.identity, None).identity_images([alone])[0]
    np.testing.assert_array_equal(seen.by(CROP)[0], expected)
    assert np.abs(seen.by(CROP)[0] - seen.by(WHOLE)[0]).max() > 1e-6
    assert [spot.box for spot in seen.spots] == [(10, 5, 22, 25), (30, 20, 42, 40)]
    np.testing.assert_array_equal(seen.spots[0].mask, np.asarray(mask) > 0)


def test_nobody_is_asked_again_about_what_was_seen(finding, file_store, tmp_path):
    images = [stored(file_store, seed, mask_of(seed, 5)) for seed in range(3)]
    first = ImageEmbedder(finding, file_store)
    seen, read = first.see(images, "robot", [WHOLE, CROP]), first.read(["a robot", "a dog"])
    elsewhere = finding.model_copy(
        update={"paths": finding.paths.model_copy(update={"work": tmp_path / "another"})}
    )
    again = ImageEmbedder(elsewhere, file_store)
    found = again.see(images, "robot", [WHOLE, CROP])
    for sight in (WHOLE, CROP):
        np.testing.assert_array_equal(found.by(sight), seen.by(sight))
    np.testing.assert_array_equal(again.read(["a dog", "a robot"]), read[::-1])
    # the loaded encoders stand in the viewer once they were needed
    assert {"_identity", "_clip"} <= set(vars(first))
    assert not {"_identity", "_clip", "_finder"} & set(vars(again))


def test_only_what_is_new_is_looked_at(config, file_store, monkeypatch):
    looked: list[int] = []
    plain = ImageEncoder.identity_images
    monkeypatch.setattr(
        ImageEncoder, "identity_images", lambda self, x: looked.append(len(x)) or plain(self, x)
    )
    images = [stored(file_store, seed) for seed in range(4)]
    for chosen in (images[:2], images, images[1:3], [images[0], images[0]]):
        ImageEmbedder(config, file_store).see(chosen, "robot", [WHOLE])
    assert looked == [2, 2]


def test_another_mask_noun_or_rule_is_another_sight(finding, file_store):
    viewer = ImageEmbedder(finding, file_store)
    rules = finding.evaluation.model_copy(update={"preprocessing": "own"})
    own = ImageEmbedder(finding.model_copy(update={"evaluation": rules}), file_store)
    here, there = (stored(file_store, 0, mask_of(left, 5)) for left in (10, 12))
    rows = [
        viewer.see([here], "robot", [CROP]).by(CROP),
        viewer.see([there], "robot", [CROP]).by(CROP),
        own.see([here], "robot", [CROP]).by(CROP),
    ]
    assert len({row.tobytes() for row in rows}) == 3


def test_a_finder_that_is_not_there_is_an_error_and_no_missing_value(finding, file_store):
    with pytest.raises(ConfigError, match="no/where"):
        ImageEmbedder(finding, file_store).see([stored(file_store, 0)], "robot", [CROP])


def test_what_is_seen_does_not_depend_on_the_neighbours(config, file_store):
    images = [stored(file_store, seed) for seed in range(17)]
    together = ImageEmbedder(config, file_store).see(images, "robot", [WHOLE]).by(WHOLE)
    alone = ImageEncoder(config.evaluation.identity, None).identity_images([picture(16)])
    np.testing.assert_array_equal(together[16:], alone)


def test_pictures_are_decoded_when_asked_for(file_store):
    gone = stored(file_store, 1).model_copy(
        update={"blob": stored(file_store, 1).blob.model_copy(update={"sha256": "0" * 64})}
    )
    pictures = StoredImages(file_store, (stored(file_store, 0), gone))
    assert len(pictures) == 2
    np.testing.assert_array_equal(np.asarray(pictures[0]), np.asarray(picture(0)))
    assert len(pictures[:1]) == 1
    with pytest.raises(Exception, match="0000"):
        pictures[1]
