"""Embeddings of stored images: equal to the encoders' own, cached, nan where unknown."""

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
def with_detector(config: Config) -> Config:
    """A config with a detector whose model is missing: only masks give regions."""
    detector = config.evaluation.detector.model_copy(
        update={"kind": "detector", "model": "no/where"}
    )
    rules = config.evaluation.model_copy(update={"detector": detector})
    return config.model_copy(update={"evaluation": rules})


def test_whole_images_have_the_encoders_embeddings(config, file_store):
    images = [stored(file_store, seed) for seed in range(3)]
    found = ImageEmbedder(config, file_store).embed(
        images, "robot", [WHOLE, ("clip", "whole"), CROP]
    )
    rules = config.evaluation
    pixels = [picture(seed) for seed in range(3)]
    expected = ImageEncoder(rules.identity, None).identity_images(pixels)
    np.testing.assert_array_equal(found.get(WHOLE), expected)
    np.testing.assert_array_equal(
        found.get(("clip", "whole")), ImageEncoder(rules.clip, None).clip_images(pixels)
    )
    assert found.digests == tuple(image.blob.sha256 for image in images)
    assert found.regions is None
    assert found.get(CROP) is None


def test_crops_follow_the_masks(with_detector, file_store):
    mask = mask_of(10, 5)
    images = [stored(file_store, 0, mask), stored(file_store, 1, mask_of(30, 20))]
    found = ImageEmbedder(with_detector, file_store).embed(images, "robot", [WHOLE, CROP])
    alone = crop(picture(0), region_of_mask(mask))
    expected = ImageEncoder(with_detector.evaluation.identity, None).identity_images([alone])[0]
    np.testing.assert_array_equal(found.get(CROP)[0], expected)
    assert np.abs(found.get(CROP)[0] - found.get(WHOLE)[0]).max() > 1e-6
    assert [region.box for region in found.regions] == [(10, 5, 22, 25), (30, 20, 42, 40)]
    np.testing.assert_array_equal(found.regions[0].mask, np.asarray(mask) > 0)


def test_cached_embeddings_load_no_model(with_detector, file_store, tmp_path):
    images = [stored(file_store, seed, mask_of(seed, 5)) for seed in range(3)]
    first = ImageEmbedder(with_detector, file_store)
    before, texts = (
        first.embed(images, "robot", [WHOLE, CROP]),
        first.embed_texts(["a robot", "a dog"]),
    )
    elsewhere = with_detector.model_copy(
        update={"paths": with_detector.paths.model_copy(update={"work": tmp_path / "another"})}
    )
    again = ImageEmbedder(elsewhere, file_store)
    found = again.embed(images, "robot", [WHOLE, CROP])
    for key in (WHOLE, CROP):
        np.testing.assert_array_equal(found.get(key), before.get(key))
    np.testing.assert_array_equal(again.embed_texts(["a dog", "a robot"]), texts[::-1])
    # cached properties of the loaded models
    assert {"_identity", "_clip"} <= set(vars(first))
    assert not {"_identity", "_clip", "_detector"} & set(vars(again))


def test_only_missing_embeddings_are_computed(config, file_store, monkeypatch):
    counts: list[int] = []
    original = ImageEncoder.identity_images
    monkeypatch.setattr(
        ImageEncoder, "identity_images", lambda self, x: counts.append(len(x)) or original(self, x)
    )
    images = [stored(file_store, seed) for seed in range(4)]
    for chosen in (images[:2], images, images[1:3], [images[0], images[0]]):
        ImageEmbedder(config, file_store).embed(chosen, "robot", [WHOLE])
    assert counts == [2, 2]


def test_another_mask_or_preprocessing_gives_another_embedding(with_detector, file_store):
    embedder = ImageEmbedder(with_detector, file_store)
    rules = with_detector.evaluation.model_copy(update={"preprocessing": "own"})
    own = ImageEmbedder(with_detector.model_copy(update={"evaluation": rules}), file_store)
    first, second = (stored(file_store, 0, mask_of(left, 5)) for left in (10, 12))
    rows = [
        embedder.embed([first], "robot", [CROP]).get(CROP),
        embedder.embed([second], "robot", [CROP]).get(CROP),
        own.embed([first], "robot", [CROP]).get(CROP),
    ]
    assert len({row.tobytes() for row in rows}) == 3


def test_a_missing_detector_is_an_error_and_not_a_missing_value(with_detector, file_store):
    with pytest.raises(ConfigError, match="no/where"):
        ImageEmbedder(with_detector, file_store).embed([stored(file_store, 0)], "robot", [CROP])


def test_embeddings_do_not_depend_on_other_images(config, file_store):
    images = [stored(file_store, seed) for seed in range(17)]
    together = ImageEmbedder(config, file_store).embed(images, "robot", [WHOLE]).get(WHOLE)
    alone = ImageEncoder(config.evaluation.identity, None).identity_images([picture(16)])
    np.testing.assert_array_equal(together[16:], alone)


def test_images_are_decoded_on_access(file_store):
    gone = stored(file_store, 1).model_copy(
        update={"blob": stored(file_store, 1).blob.model_copy(update={"sha256": "0" * 64})}
    )
    pictures = StoredImages(file_store, (stored(file_store, 0), gone))
    assert len(pictures) == 2
    np.testing.assert_array_equal(np.asarray(pictures[0]), np.asarray(picture(0)))
    assert len(pictures[:1]) == 1
    with pytest.raises(Exception, match="0000"):
        pictures[1]
