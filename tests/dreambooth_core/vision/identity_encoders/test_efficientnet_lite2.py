"""The packaged identity encoder: equal to the published one, named in configs without a network."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dreambooth_core.config import Evaluation
from dreambooth_core.digests import digest_of_file
from dreambooth_core.errors import ConfigError, ModelError
from dreambooth_core.vision.encoders import encoder_digest
from dreambooth_core.vision.identity_encoders import load_identity_encoder
from dreambooth_core.vision.identity_encoders.efficientnet_lite2 import WEIGHTS, EfficientNetEncoder
from tests import vision_weights
from tests.real_images import disc, palace

NAME = "builtin:efficientnet_lite2"
REFERENCE = Path(__file__).with_name("efficientnet_lite2_reference.json")
"""Unit features and likeliest labels of `disc` by the package efficientnet_lite_pytorch 0.1.0, float32."""
ORIGINAL = "DREAMBOOTH_EFFICIENTNET_LITE2"
"""Environment variable with the path of the original efficientnet-lite2-9656183e.pth."""


@pytest.fixture(scope="module")
def encoder() -> EfficientNetEncoder:
    return EfficientNetEncoder("own")


def test_features_and_labels_equal_the_recorded_ones_of_the_original(encoder):
    recorded = json.loads(REFERENCE.read_text())
    (features,) = encoder.identity_images([disc()[0]])
    assert features @ np.array(recorded["features"]) > 0.9999  # the packaged file is float16
    assert encoder.likeliest_labels([disc()[0]]) == [recorded["labels"]]


@pytest.mark.skipif(ORIGINAL not in os.environ, reason=f"{ORIGINAL} names no checkpoint")
def test_the_packaged_file_is_the_converted_original():
    packaged, converted = load_file(WEIGHTS), vision_weights.lite2(Path(os.environ[ORIGINAL]))
    assert packaged.keys() == converted.keys()
    assert all(torch.equal(packaged[name], converted[name]) for name in packaged)


def test_rows_have_unit_length_and_do_not_depend_on_other_images(encoder):
    images = [disc()[0], palace()]
    rows = encoder.identity_images(images)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1)
    np.testing.assert_allclose(encoder.identity_images(images[::-1])[::-1], rows, atol=1e-5)
    assert encoder.identity_images([]).shape == (0, 1280)


def test_a_config_names_it(encoder):
    rules = Evaluation(identity=NAME)
    loaded = load_identity_encoder(rules.identity, rules.identity_revision, "own")
    image = disc()[0]
    np.testing.assert_array_equal(loaded.identity_images([image]), encoder.identity_images([image]))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"identity": "builtin:dino"}, "choose from: builtin:efficientnet_lite2"),
        ({"identity": NAME, "identity_revision": "a" * 40}, "has no effect"),
    ],
)
def test_a_wrong_name_is_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        Evaluation.model_validate(given)


def test_an_unknown_name_is_a_config_error():
    with pytest.raises(ConfigError, match="choose one of: efficientnet_lite2"):
        load_identity_encoder("builtin:nothing", None, "own")


def test_the_digest_is_that_of_name_and_weights():
    assert encoder_digest(NAME, None) == encoder_digest(NAME, None)
    assert encoder_digest(NAME, None) != encoder_digest("a-hub/id", "a" * 40)


def test_damaged_weights_are_one_sentence(tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(WEIGHTS.read_bytes()[:10_000])
    with pytest.raises(ModelError, match="no identity encoder at") as caught:
        EfficientNetEncoder(weights=damaged)
    assert "\n" not in str(caught.value)


def test_the_notice_names_the_packaged_files():
    notice = WEIGHTS.with_name("NOTICE.md").read_text(encoding="utf-8")
    assert f"`{digest_of_file(WEIGHTS)}`" in notice
    assert f"`{digest_of_file(WEIGHTS.with_name('imagenet_labels.txt'))}`" in notice
    assert WEIGHTS.stat().st_size < 13_000_000
