"""Zero-shot detectors of two architectures, tiny and random: the best box, or none."""

import pytest
import torch
from PIL import Image

from dreambooth_core.vision.detectors import Region, detector, load_detector
from dreambooth_core.vision.detectors.detector import inside


@pytest.fixture
def finder(tiny_detector):
    return load_detector(tiny_detector)


def best_score(finder, image: Image.Image, noun: str) -> float:
    """The highest score of any box by transformers' own arithmetic."""
    inputs = finder._processor(images=image, text=[[noun]], return_tensors="pt")
    with torch.no_grad():
        outputs = finder._network(**inputs)
    (found,) = finder._processor.post_process_grounded_object_detection(
        outputs, threshold=-1, target_sizes=[(image.height, image.width)]
    )
    return float(found["scores"].max())


def test_a_box_in_pixels_of_each_picture_and_no_mask(finder, pictures, monkeypatch):
    monkeypatch.setattr(detector, "LEAST", -1)
    found = finder.find(pictures, "robot")
    assert len(found) == len(pictures)
    for image, spot in zip(pictures, found, strict=True):
        left, top, right, bottom = spot.box
        assert 0 <= left < right <= image.width
        assert 0 <= top < bottom <= image.height
        assert spot.mask is None


def test_neighbours_and_order_change_nothing(finder, pictures, monkeypatch):
    monkeypatch.setattr(detector, "LEAST", -1)
    together = finder.find(pictures, "robot")
    assert [finder.find([image], "robot")[0] for image in pictures[::-1]] == together[::-1]


def test_no_box_below_the_least_score(finder, pictures, monkeypatch):
    image = pictures[0]
    best = best_score(finder, image, "robot")
    monkeypatch.setattr(detector, "LEAST", best - 1e-6)
    assert finder.find([image], "robot") != [None]
    monkeypatch.setattr(detector, "LEAST", best + 1e-6)
    assert finder.find([image], "robot") == [None]


def test_the_noun_is_what_it_is_asked_for(finder, pictures):
    assert best_score(finder, pictures[0], "robot") != best_score(finder, pictures[0], "teapot")


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
def test_a_box_ends_at_the_pictures_edge(box, found):
    assert inside(box, Image.new("RGB", (60, 40))) == (found and Region(found))
