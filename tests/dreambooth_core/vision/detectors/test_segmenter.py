"""Which label means the subject, which region is it, and whose mask comes out."""

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

    def test_one_of_a_labels_names_beats_one_of_its_words(self):
        assert labels_for(self.ADE, "car") == [2]
        assert labels_for(self.ADE, "AUTO ") == [2]

    def test_whole_words_only_and_all_labels_that_have_them(self):
        assert labels_for(self.ADE, "dog") == [1]
        assert labels_for(self.ADE, "art") == []
        assert labels_for({0: "toy dog", 1: "hot dog", 2: "cat"}, "dog") == [0, 1]

    def test_a_label_for_any_subject_is_the_last_resort(self):
        assert labels_for({0: "background", 1: "Subject"}, "dog") == [1]
        assert labels_for({0: "background", 1: "foreground", 2: "dog"}, "dog") == [2]

    def test_a_noun_is_no_pattern(self):
        assert labels_for({0: "a", 1: "b"}, ".") == []


class TestLargest:
    def test_the_largest_of_several_regions_that_only_touch_at_corners(self):
        region = np.zeros((20, 20), dtype=np.bool_)
        region[0:3, 0:3] = region[3:10, 3:10] = region[15:17, 15:20] = True
        alone = np.zeros_like(region)
        alone[3:10, 3:10] = True
        np.testing.assert_array_equal(largest(region), alone)

    @pytest.mark.parametrize(("pixels", "found"), [(0, False), (4, False), (5, True)])
    def test_specks_are_nothing(self, pixels, found):
        region = np.zeros((10, 100), dtype=np.bool_)  # LEAST of it are five pixels
        assert region.size * LEAST == 5
        region[0, :pixels] = True
        assert (Region.around(largest(region)) is not None) == found


def test_the_region_is_what_the_network_says(tiny_segmenter, pictures):
    """Against transformers' own arithmetic: the enlarged logits' argmax."""
    from transformers import SegformerForSemanticSegmentation, SegformerImageProcessorPil

    network = SegformerForSemanticSegmentation.from_pretrained(
        tiny_segmenter.model, dtype=torch.float32
    )
    processor = SegformerImageProcessorPil.from_pretrained(tiny_segmenter.model)
    for image, spot in zip(
        pictures, load_detector(tiny_segmenter).find(pictures, "robot"), strict=True
    ):
        with torch.no_grad():
            outputs = network(**processor(images=image, return_tensors="pt"))
        (theirs,) = processor.post_process_semantic_segmentation(
            outputs, target_sizes=[(image.height, image.width)]
        )
        np.testing.assert_array_equal(spot.mask, largest(theirs.numpy() == 1))
        assert 0.05 < spot.mask.mean() < 0.95
        assert spot.mask[:, spot.box[0]].any()
        assert not spot.mask[:, spot.box[2] :].any()


def test_neighbours_and_order_change_nothing(tiny_segmenter, pictures):
    finder = load_detector(tiny_segmenter)
    together = finder.find(pictures, "robot")
    for image, spot in zip(pictures[::-1], together[::-1], strict=True):
        (alone,) = finder.find([image], "robot")
        assert alone.box == spot.box
        np.testing.assert_array_equal(alone.mask, spot.mask)
    assert finder.find([], "robot") == []


def test_the_complement_belongs_to_the_other_label(tiny_segmenter, pictures):
    """No pixel is both, so the regions of the two labels do not meet."""
    finder = load_detector(tiny_segmenter)
    ours, theirs = finder.find(pictures, "robot"), finder.find(pictures, "background")
    assert not any((a.mask & b.mask).any() for a, b in zip(ours, theirs, strict=True))


def test_a_noun_without_a_label_is_told_with_the_labels_there_are(tiny_segmenter, pictures):
    with pytest.raises(ModelError, match="no label for 'dog'; it has background, robot"):
        load_detector(tiny_segmenter).find(pictures, "dog")


def test_a_missing_model_is_one_sentence(tiny_segmenter, tmp_path):
    with pytest.raises(ModelError, match="no segmenter that could find") as caught:
        load_detector(tiny_segmenter.model_copy(update={"model": str(tmp_path)}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_hub_id_needs_its_commit(tiny_segmenter, revision):
    rules = tiny_segmenter.model_copy(update={"model": "a/b", "revision": revision})
    with pytest.raises(ConfigError, match="40 hex digits"):
        load_detector(rules)
