"""Zero-shot detection: Grounding DINO, OWLv2 and their like, asked for the class noun in words."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from dreambooth_core.vision.detectors import Region
from dreambooth_core.vision.detectors._models import device, load_model, load_part

if TYPE_CHECKING:
    from dreambooth_core import config

LEAST = 0.2
"""Score below which a box is none: between what Grounding DINO's and OWLv2's authors use, 0.25 and 0.1.
Only the best box counts, so a low one costs little."""


class BoxDetector:
    """A detection model; pictures are looked at one by one, so neighbours change nothing."""

    def __init__(self, rules: "config.Detector") -> None:
        """Load it; raises `ConfigError` and `ModelError` as `load_part` does."""
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self._network = load_model(AutoModelForZeroShotObjectDetection, rules)
        self._processor = load_part(AutoProcessor, rules)

    def find(self, images: Sequence[Image], noun: str) -> list[Region | None]:
        """The box that looks most like `noun`, without a mask; None where no score reaches `LEAST`."""
        return [self._best(image.convert("RGB"), noun) for image in images]

    def _best(self, image: Image, noun: str) -> Region | None:
        import torch

        # two lists deep: OWLv2 takes queries per picture, Grounding DINO joins them to "noun."
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
    """All pixels that a box of real numbers touches within the picture; None for none."""
    left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    right, bottom = min(image.width, math.ceil(box[2])), min(image.height, math.ceil(box[3]))
    return Region((left, top, right, bottom)) if left < right and top < bottom else None
