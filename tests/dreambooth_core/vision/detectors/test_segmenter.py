"""Segmenters: choice of the label, the largest region, and the mask."""

from typing import ClassVar

import numpy as np
import pytest
import torch

from dreambooth_core.errors import ConfigError, ModelError
from dreambooth_core.vision.detectors import Region, load_detector
from dreambooth_core.vision.detectors.segmenter import LEAST, labels_for, largest


class TestLabels:
    ADE: ClassVar = {
        0: "wall",
        1: "hot dog",
        2: "Car, auto, automobile",
        3: "cartoon",
        4: "railway car",
    }

    def test_a_labels_name_takes_precedence_over_its_words(self):
        assert labels_for(self.ADE, "car") == [2]
        assert labels_for(self.ADE, "AUTO ") == [2]

    def test_whole_words_match_and_all_labels_with_them(self):
        assert labels_for(self.ADE, "dog") == [1]
        assert labels_for(self.ADE, "art") == []
        assert labels_for({0: "toy dog", 1: "hot dog", 2: "cat"}, "dog") == [0, 1]

    def test_a_generic_label_is_used_last(self):
        assert labels_for({0: "background", 1: "Subject"}, "dog") == [1]
        assert labels_for({0: "background", 1: "foreground", 2: "dog"}, "dog") == [2]

    def test_a_noun_is_no_regular_expression(self):
        assert labels_for({0: "a", 1: "b"}, ".") == []


class TestLargest:
    def test_the_largest_of_several_regions_that_only_touch_at_corners(self):
        region = np.zeros((20, 20), dtype=np.bool_)
        region[0:3, 0:3] = region[3:10, 3:10] = region[15:17, 15:20] = True
        alone = np.zeros_like(region)
        alone[3:10, 3:10] = True
        np.testing.assert_array_equal(largest(region), alone)

    @pytest.mark.parametrize(("pixels", "found"), [(0, False), (4, False), (5, True)])
    def test_regions_below_the_least_share_are_ignored(self, pixels, found):
        region = np.zeros((10, 100), dtype=np.bool_)  # LEAST of it are five pixels
        assert region.size * LEAST == 5
        region[0, :pixels] = True
        assert (Region.around(largest(region)) is not None) == found


def test_the_mask_equals_the_networks_segmentation(tiny_segmenter, images):
    """Against transformers' own post-processing: the argmax of the enlarged logits."""
    from transformers import SegformerForSemanticSegmentation, SegformerImageProcessorPil

    network = SegformerForSemanticSegmentation.from_pretrained(
        tiny_segmenter.model, dtype=torch.float32
    )
    processor = SegformerImageProcessorPil.from_pretrained(tiny_segmenter.model)
    for image, region in zip(
        images, load_detector(tiny_segmenter).find(images, "robot"), strict=True
    ):
        with torch.no_grad():
            outputs = network(**processor(images=image, return_tensors="pt"))
        (theirs,) = processor.post_process_semantic_segmentation(
            outputs, target_sizes=[(image.height, image.width)]
        )
        np.testing.assert_array_equal(region.mask, largest(theirs.numpy() == 1))
        assert 0.05 < region.mask.mean() < 0.95
        assert region.mask[:, region.box[0]].any()
        assert not region.mask[:, region.box[2] :].any()


def test_other_images_and_order_have_no_effect(tiny_segmenter, images):
    detector = load_detector(tiny_segmenter)
    together = detector.find(images, "robot")
    for image, region in zip(images[::-1], together[::-1], strict=True):
        (alone,) = detector.find([image], "robot")
        assert alone.box == region.box
        np.testing.assert_array_equal(alone.mask, region.mask)
    assert detector.find([], "robot") == []


def test_regions_of_two_labels_are_disjoint(tiny_segmenter, images):
    detector = load_detector(tiny_segmenter)
    ours, theirs = detector.find(images, "robot"), detector.find(images, "background")
    assert not any((a.mask & b.mask).any() for a, b in zip(ours, theirs, strict=True))


def test_a_noun_without_a_label_is_refused_with_the_existing_labels(tiny_segmenter, images):
    with pytest.raises(ModelError, match="no label for 'dog', its labels are background, robot"):
        load_detector(tiny_segmenter).find(images, "dog")


def test_a_missing_model_is_one_sentence(tiny_segmenter, tmp_path):
    with pytest.raises(ModelError, match="no segmenter at") as caught:
        load_detector(tiny_segmenter.model_copy(update={"model": str(tmp_path)}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_hub_id_needs_its_commit(tiny_segmenter, revision):
    rules = tiny_segmenter.model_copy(update={"model": "a/b", "revision": revision})
    with pytest.raises(ConfigError, match="40 hex digits"):
        load_detector(rules)
