"""Boxes by the vision-language model of the section `vision`, for any class noun.

With `model`, a segmenter's mask inside the box is added. An image without a usable answer has no region;
it is counted and not cached, so that a later run asks again.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL.Image import Image

from dreambooth_core import console
from dreambooth_core.digests import digest_json
from dreambooth_core.errors import ConfigError, Unanswered
from dreambooth_core.vision.detectors import Region
from dreambooth_core.vision.detectors.detector import inside
from dreambooth_core.vision.detectors.segmenter import MaskDetector
from dreambooth_core.vision.language.concurrency import answers_or_failures
from dreambooth_core.vision.language.model import AnswerCache, VisionLanguageModel, deciding

if TYPE_CHECKING:
    from dreambooth_core import config
    from dreambooth_core.vision.language.boxes import Box

REMOTE = True
AT_ONCE = 4
"""Concurrent requests."""


class LanguageModelDetector:
    """A vision-language model that locates a noun, and optionally a segmenter."""

    def __init__(
        self, rules: "config.Detector", vision: "config.Vision", answers: AnswerCache | None
    ) -> None:
        """Load the segmenter; raises `ConfigError` and `ModelError` as it does. Nothing is sent."""
        self._segmenter = MaskDetector(rules) if rules.model else None
        self._vision, self._answers = vision, answers
        self.unanswered = 0

    def find(self, images: Sequence[Image], noun: str) -> list[Region | None]:
        """The largest box of each image; None without a box or without a usable answer.

        Raises the errors of `VisionLanguageModel.locate` except `Unanswered`.
        """
        with VisionLanguageModel(self._vision, self._answers) as model:
            found = answers_or_failures(
                lambda image: model.locate(image, noun).value, images, AT_ONCE
            )
        failed = [answer for answer in found if isinstance(answer, Unanswered)]
        if failed:
            self.unanswered += len(failed)
            console.say(
                f"{self._vision.model} left {len(failed)} of {len(found)} images without a region: "
                f"{failed[0]}"
            )
        return [
            None if isinstance(answer, Unanswered) else self._region(image, noun, answer)
            for image, answer in zip(images, found, strict=True)
        ]

    def _region(self, image: Image, noun: str, boxes: "Sequence[Box]") -> Region | None:
        region = largest_box(boxes, image)
        if region is None or self._segmenter is None:
            return region
        return Region(region.box, self._segmenter.mask_in_box(image, region, noun))


def load(
    rules: "config.Detector",
    vision: "config.Vision | None" = None,
    answers: AnswerCache | None = None,
) -> LanguageModelDetector:
    """A detector by the model of `vision`; raises `ConfigError` without one, and `ModelError`."""
    if rules.model and vision is None:
        MaskDetector(rules)  # the error of a missing model precedes
    if vision is None or vision.backend is None:
        raise ConfigError(
            "evaluation.detector.kind: language_model needs a model: set vision.backend and vision.model"
        )
    return LanguageModelDetector(rules, vision, answers)


def digest(rules: "config.Detector", vision: "config.Vision | None") -> str:
    """Digest of the options that affect boxes, and of the segmenter's files."""
    from dreambooth_core.vision.encoders import encoder_digest

    segmenter = encoder_digest(rules.model, rules.revision) if rules.model else None
    return digest_json([None if vision is None else deciding(vision), segmenter])


def largest_box(boxes: "Sequence[Box]", image: Image) -> Region | None:
    """The region of the box with the largest area, the first of equal ones; None without a box."""
    if not boxes:
        return None
    box = max(boxes, key=lambda one: (one.right - one.left) * (one.bottom - one.top))
    width, height = image.size
    corners = (box.left * width, box.top * height, box.right * width, box.bottom * height)
    return inside(corners, image)
