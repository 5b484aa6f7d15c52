"""Captions for stored photos without one, by the model of `vision`, cached by photos and model.

The captions are the prompts of the image set, and thereby part of its digest; the photos' folder is
not changed.
"""

import io
from pathlib import Path

import PIL.Image as Pillow

from dreambooth_core.config import Config
from dreambooth_core.data import captioning
from dreambooth_core.data.findings import Finding
from dreambooth_core.errors import StageFailed, Unanswered
from dreambooth_core.storage.answer_cache import StoredAnswers
from dreambooth_core.storage.blobs import get_blob, image_set
from dreambooth_core.storage.records import Image, ImageSet, Record
from dreambooth_core.storage.stage_cache import cached_stage
from dreambooth_core.storage.stores import Store
from dreambooth_core.vision.language.model import VisionLanguageModel, deciding

QUESTIONS = (captioning.SCENE, captioning.LEAKS, captioning.AGAIN, captioning.OWN)


class CaptionedImages(Record):
    """An image set with captions, and the findings about the new ones."""

    images: ImageSet
    findings: tuple[Finding, ...]
    """Captions with leaks, and photos without a usable answer, which keep the instance prompt."""
    unanswered: int
    """Photos without a usable answer; the next run asks again."""


def with_captions(config: Config, store: Store, instance: ImageSet) -> tuple[CaptionedImages, bool]:
    """The instance images, with captions where they have none, and whether the result was cached.

    Subjects with `captions: false` are left out. Raises `StageFailed` if no photo gets a caption.
    """
    inputs = {
        "captioned": instance.digest,
        "vision": deciding(config.vision),
        "questions": QUESTIONS,
        "subjects": [[one.identifier, one.class_noun, one.captions] for one in config.subjects],
    }

    def make(_: str) -> CaptionedImages:
        with VisionLanguageModel(config.vision, StoredAnswers(store)) as model:
            return _captioned(config, store, instance, model)

    # under `validate/`, since `dreambooth gc` deletes unused results there
    return cached_stage(store, "validate", inputs, CaptionedImages, make, _is_complete)


def _is_complete(captioned: CaptionedImages) -> bool:
    return not captioned.unanswered


def _captioned(
    config: Config, store: Store, instance: ImageSet, model: VisionLanguageModel
) -> CaptionedImages:
    done: list[Image] = []
    findings: list[Finding] = []
    errors: list[Unanswered] = []
    written = 0
    for image in instance.images:
        subject = config.subjects[image.subject]
        if not image.prompt and subject.captions:
            name = Path(image.name)
            try:
                with Pillow.open(io.BytesIO(get_blob(store, image.blob))) as pixels:
                    caption, leaks = captioning.caption_photo(model, pixels, subject)
            except Unanswered as error:
                errors.append(error)
                findings.append(captioning.without_caption(name, error))
            else:
                written += 1
                image = image.model_copy(update={"prompt": subject.fill(caption)})
                findings += [captioning.leaking(name, leaks, subject)] if leaks else []
        done.append(image)
    if errors and not written:
        raise StageFailed(
            f"{model.name} captioned none of {len(errors)} photos, first error: {errors[0]}; check "
            "vision, or remove dataset.auto_captions"
        )
    return CaptionedImages(
        images=image_set(store, "datasets", done),
        findings=tuple(findings),
        unanswered=len(errors),
    )
