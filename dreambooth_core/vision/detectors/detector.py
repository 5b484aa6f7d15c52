"""Zero-shot object detection by class noun: Grounding DINO, OWLv2 and similar models."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from dreambooth_core.vision.detectors import Region
from dreambooth_core.vision.detectors._models import device, load_model, load_part

if TYPE_CHECKING:
    from dreambooth_core import config

LEAST = 0.2
"""Least score of a box: between the authors' 0.25 (Grounding DINO) and 0.1 (OWLv2). Low is safe, since
only the best box is used."""


class BoxDetector:
    """A detection model; images are processed one by one, so that results are independent."""

    unanswered = 0

    def __init__(self, rules: "config.Detector") -> None:
        """Load it; raises `ConfigError` and `ModelError` as `load_part` does."""
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self._network = load_model(AutoModelForZeroShotObjectDetection, rules)
        self._processor = load_part(AutoProcessor, rules)

    def find(self, images: Sequence[Image], noun: str) -> list[Region | None]:
        """The box of highest score for `noun`, without a mask; None where no score reaches `LEAST`."""
        return [self._best(image.convert("RGB"), noun) for image in images]

    def _best(self, image: Image, noun: str) -> Region | None:
        import torch

        # nested list: OWLv2 takes queries per image, Grounding DINO joins them to "noun."
        inputs = self._processor(images=image, text=[[noun]], return_tensors="pt").to(device())
        with torch.inference_mode():
            outputs = self._network(**inputs)
        found = self._processor.post_process_grounded_object_detection(
            outputs, threshold=LEAST, target_sizes=[(image.height, image.width)]
        )[0]
        if not len(found["scores"]):
            return None
        return inside(found["boxes"][found["scores"].argmax()].tolist(), image)


def load(rules: "config.Detector") -> BoxDetector:
    """A detector by folder or Hub id; raises `ConfigError` and `ModelError`."""
    return BoxDetector(rules)


def inside(box: Sequence[Any], image: Image) -> Region | None:
    """A box of real numbers rounded outwards and clipped to the image; None if empty."""
    left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    right, bottom = min(image.width, math.ceil(box[2])), min(image.height, math.ceil(box[3]))
    return Region((left, top, right, bottom)) if left < right and top < bottom else None
