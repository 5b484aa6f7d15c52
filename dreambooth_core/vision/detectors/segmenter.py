"""Semantic segmentation by class noun: SegFormer, BEiT, DPT and similar models.

Models without a label for the noun are used by a generic label, such as "foreground".
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from dreambooth_core.errors import ModelError
from dreambooth_core.vision.detectors import Region
from dreambooth_core.vision.detectors._models import device, load_model, load_part

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth_core import config

ANY_SUBJECT = ("subject", "foreground")
"""Generic labels, of models that separate any subject from its background."""
LEAST = 0.005
"""Least share of the image that a region must cover."""


class MaskDetector:
    """A segmentation model; images are processed one by one, so that results are independent."""

    unanswered = 0

    def __init__(self, rules: "config.Detector") -> None:
        """Load it; raises `ConfigError` and `ModelError` as `load_part` does."""
        from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

        self._name = rules.model
        self._network = load_model(AutoModelForSemanticSegmentation, rules)
        self._processor = load_part(AutoImageProcessor, rules)
        self._processor.do_center_crop = False  # the mask must cover the whole image

    def find(self, images: Sequence[Image], noun: str) -> list[Region | None]:
        """The largest connected region of the noun's label, with its mask.

        None where it covers less than `LEAST` of the image. Raises `ModelError` when no label
        matches the noun.
        """
        wanted = self._labels(noun)
        return [Region.around(largest(self._region(image, wanted))) for image in images]

    def mask_in_box(self, image: Image, region: Region, noun: str) -> NDArray[np.bool_] | None:
        """(height, width) of the image: the largest connected part of the noun's label in a region's box.

        None where it covers less than `LEAST` of the image. Raises `ModelError` as `find` does.
        """
        left, top, right, bottom = region.box
        mask = np.zeros((image.height, image.width), dtype=np.bool_)
        whole = self._region(image, self._labels(noun))
        mask[top:bottom, left:right] = whole[top:bottom, left:right]
        mask = largest(mask)
        return mask if mask.any() else None

    def _labels(self, noun: str) -> list[int]:
        """Numbers of the noun's labels; raises `ModelError` without one."""
        names = {int(number): name for number, name in self._network.config.id2label.items()}
        wanted = labels_for(names, noun)
        if not wanted:
            known = ", ".join(list(names.values())[:20])
            raise ModelError(
                f"the segmenter {self._name} has no label for {noun!r}, its labels are {known}: set "
                "evaluation.detector.model to one with the label, or evaluation.detector.kind to detector"
            )
        return wanted

    def _region(self, image: Image, wanted: Sequence[int]) -> NDArray[np.bool_]:
        """(height, width), true where a wanted label has the highest logit."""
        import torch
        from torch.nn.functional import interpolate

        inputs = self._processor(images=image.convert("RGB"), return_tensors="pt").to(device())
        with torch.inference_mode():
            lead = _lead(self._network(**inputs).logits.float(), wanted)
            lead = interpolate(lead, (image.height, image.width), mode="bilinear")
        return np.asarray(lead[0, 0].cpu() > 0)


def load(rules: "config.Detector") -> MaskDetector:
    """A segmenter by folder or Hub id; raises `ConfigError` and `ModelError`."""
    return MaskDetector(rules)


def labels_for(names: Mapping[int, str], noun: str) -> list[int]:
    """Numbers of the labels for `noun`, by the first rule that matches any label.

    Rules: one of the label's names (split at commas and semicolons) is the noun; the noun is among
    the label's words; the label is generic (`ANY_SUBJECT`). Case is ignored.
    """
    word = noun.lower().strip()
    whole = re.compile(rf"\b{re.escape(word)}\b")
    labels = {number: name.lower() for number, name in names.items()}
    passes = (
        [n for n, label in labels.items() if word in re.split(r"\s*[,;]\s*", label)],
        [n for n, label in labels.items() if whole.search(label)],
        [n for n, label in labels.items() if label in ANY_SUBJECT],
    )
    return next((found for found in passes if found), [])


def largest(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part of a (height, width) region; empty when it is below `LEAST`."""
    from scipy.ndimage import label

    parts, count = label(region)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    if not count or sizes.max() < LEAST * region.size:
        return np.zeros_like(region)
    return np.asarray(parts == sizes.argmax() + 1)


def _lead(logits: "Tensor", wanted: Sequence[int]) -> "Tensor":
    """(1, labels, h, w) -> (1, 1, h, w): best wanted logit minus best other logit.

    Only this map is enlarged: 150 labels at the size of a large photo would not fit into memory.
    """
    others = [number for number in range(logits.shape[1]) if number not in set(wanted)]
    ours = logits[:, wanted].amax(1, keepdim=True)
    return ours - logits[:, others].amax(1, keepdim=True) if others else ours
