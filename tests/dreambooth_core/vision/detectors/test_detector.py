"""Zero-shot detectors of two architectures with random weights."""

import pytest
import torch
from PIL import Image

from dreambooth_core.vision.detectors import Region, load_detector
from dreambooth_core.vision.detectors import detector as module
from dreambooth_core.vision.detectors.detector import inside


@pytest.fixture
def detector(tiny_detector):
    return load_detector(tiny_detector)


def best_score(detector, image: Image.Image, noun: str) -> float:
    """The highest score of any box by transformers' own post-processing."""
    inputs = detector._processor(images=image, text=[[noun]], return_tensors="pt")
    with torch.no_grad():
        outputs = detector._network(**inputs)
    (found,) = detector._processor.post_process_grounded_object_detection(
        outputs, threshold=-1, target_sizes=[(image.height, image.width)]
    )
    return float(found["scores"].max())


def test_a_box_in_pixels_of_each_image_and_no_mask(detector, images, monkeypatch):
    monkeypatch.setattr(module, "LEAST", -1)
    found = detector.find(images, "robot")
    assert len(found) == len(images)
    for image, region in zip(images, found, strict=True):
        left, top, right, bottom = region.box
        assert 0 <= left < right <= image.width
        assert 0 <= top < bottom <= image.height
        assert region.mask is None


def test_other_images_and_order_have_no_effect(detector, images, monkeypatch):
    monkeypatch.setattr(module, "LEAST", -1)
    together = detector.find(images, "robot")
    assert [detector.find([image], "robot")[0] for image in images[::-1]] == together[::-1]


def test_no_box_below_the_least_score(detector, images, monkeypatch):
    image = images[0]
    best = best_score(detector, image, "robot")
    monkeypatch.setattr(module, "LEAST", best - 1e-6)
    assert detector.find([image], "robot") != [None]
    monkeypatch.setattr(module, "LEAST", best + 1e-6)
    assert detector.find([image], "robot") == [None]


def test_the_score_depends_on_the_noun(detector, images):
    assert best_score(detector, images[0], "robot") != best_score(detector, images[0], "teapot")


@pytest.mark.parametrize(
    ("box", "found"),
    [
        ((1.2, 2.0, 8.1, 9.0), (1, 2, 9, 9)),
        ((-5.0, -0.1, 70.0, 41.0), (0, 0, 60, 40)),
        ((10.0, 10.0, 10.0, 20.0), None),
        ((61.0, 0.0, 70.0, 10.0), None),
        ((-9.0, 0.0, 0.0, 10.0), None),
    ],
)
def test_a_box_is_clipped_to_the_image(box, found):
    assert inside(box, Image.new("RGB", (60, 40))) == (found and Region(found))
