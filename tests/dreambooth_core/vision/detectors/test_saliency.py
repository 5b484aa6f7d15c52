"""The packaged saliency network: equal to the published one, independent of noun and company."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_core.config import Detector
from dreambooth_core.digests import digest_of_file
from dreambooth_core.errors import ConfigError, ModelError
from dreambooth_core.vision.crops import detector_digest
from dreambooth_core.vision.detectors import ignores_noun, load_detector, saliency
from dreambooth_core.vision.detectors.saliency import WEIGHTS, SaliencyDetector, prepared
from tests.real_images import disc

REFERENCE = Path(__file__).with_name("u2netp_reference.json")
"""Means over 16 x 16 pixels of the original ONNX file's output for `disc`, by onnxruntime."""
ORIGINAL = "DREAMBOOTH_U2NETP_ONNX"
"""Environment variable with the path of the original u2netp.onnx."""
SALIENCY = Detector(kind="saliency")


@pytest.fixture(scope="module")
def detector() -> SaliencyDetector:
    return SaliencyDetector()


def output_of(detector: SaliencyDetector, image: Image.Image) -> np.ndarray:
    with torch.inference_mode():
        return detector._network(prepared(image).to(saliency.device())).cpu().numpy()[0, 0]


def test_the_output_equals_the_recorded_one_of_the_original(detector):
    found = output_of(detector, disc()[0]).reshape(20, 16, 20, 16).mean((1, 3))
    np.testing.assert_allclose(found, json.loads(REFERENCE.read_text()), atol=1e-4)


@pytest.mark.skipif(ORIGINAL not in os.environ, reason=f"{ORIGINAL} names no u2netp.onnx")
def test_the_output_equals_that_of_the_original_file(detector):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(os.environ[ORIGINAL])
    name = session.get_inputs()[0].name
    (expected,) = session.run(None, {name: prepared(disc()[0]).numpy()})[:1]
    np.testing.assert_allclose(output_of(detector, disc()[0]), expected[0, 0], atol=3e-5)


def test_a_conspicuous_object_is_marked_in_the_images_own_size(detector):
    image, inside = disc()
    (region,) = detector.find([image], "disc")
    assert region.mask.shape == inside.shape
    assert (region.mask & inside).sum() > 0.97 * (region.mask | inside).sum()


def test_noun_other_images_and_order_have_no_effect(detector):
    images = [disc()[0], disc()[0].resize((90, 200))]
    together = detector.find(images, "disc")
    alone = [detector.find([image], "teapot")[0] for image in reversed(images)]
    for one, other in zip(together, reversed(alone), strict=True):
        assert one.box == other.box
        np.testing.assert_array_equal(one.mask, other.mask)
    assert detector.find([], "disc") == []
    assert ignores_noun("saliency")
    assert not ignores_noun("segmenter")


@pytest.mark.parametrize("colour", ["white", "black"])
def test_nothing_is_found_on_one_colour(detector, colour):
    assert detector.find([Image.new("RGB", (100, 80), colour)], "dog") == [None]


def test_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has its own weights"):
        load_detector(Detector(kind="saliency", model=str(tmp_path)))


def test_damaged_weights_are_one_sentence(tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(WEIGHTS.read_bytes()[:10_000])
    with pytest.raises(ModelError, match="no saliency network at") as caught:
        SaliencyDetector(damaged)
    assert "\n" not in str(caught.value)


def test_the_digest_is_of_the_weights_and_of_no_other_file(monkeypatch, tmp_path):
    before = detector_digest(SALIENCY)
    monkeypatch.chdir(tmp_path)
    assert detector_digest(SALIENCY) == before
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other")
    monkeypatch.setattr(saliency, "WEIGHTS", other)
    assert detector_digest(SALIENCY) != before


def test_the_notice_names_the_packaged_file():
    notice = WEIGHTS.with_name("NOTICE.md").read_text(encoding="utf-8")
    assert f"`{digest_of_file(WEIGHTS)}`" in notice
    assert WEIGHTS.stat().st_size < 4_700_000
