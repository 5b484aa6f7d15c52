"""Validation during training: loss on fixed noises and times, and metrics of a small image grid.

The result depends on the weights only and does not change them: training with validation takes the
same steps as without. Autoencoder and frozen text encoders are loaded for it and freed afterwards.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow

from dreambooth_core.config import INVERSIONS, Config, Subject
from dreambooth_core.config.inputs import without_identifier
from dreambooth_core.diffusion import adapters, textual_inversion
from dreambooth_core.diffusion.families import Parts, channels_last, only
from dreambooth_core.diffusion.objectives import example_losses, target
from dreambooth_core.diffusion.pipelines import LoadedPipeline, decode_one_by_one
from dreambooth_core.diffusion.sampling import (
    Request,
    SamplingSettings,
    generate,
    seeds_of,
)
from dreambooth_core.metrics import EmbeddingKey, Evidence, ImageEmbeddings, Values
from dreambooth_core.metrics.embeddings import photos_of_subject
from dreambooth_core.metrics.measures import (
    pres,
    prompt_fidelity,
    subject_fidelity,
    subject_fidelity_crop,
)
from dreambooth_core.storage.records import ImageSet, ValidationResult
from dreambooth_core.training.batches import Batch, MicroBatches
from dreambooth_core.training.inputs import TrainingContext
from dreambooth_core.training.module import DreamBooth
from dreambooth_core.training.precision import resolved_precision, text_numbers
from dreambooth_core.vision.crops import crop, regions
from dreambooth_core.vision.detectors import Detector, local_detector
from dreambooth_core.vision.embeddings import Embeddings
from dreambooth_core.vision.encoders import ImageEncoder
from dreambooth_core.vision.identity_encoders import IdentityEncoder, load_identity_encoder

IDENTITY_WHOLE: EmbeddingKey = ("identity", "whole")
IDENTITY_CROP: EmbeddingKey = ("identity", "crop")
CLIP_WHOLE: EmbeddingKey = ("clip", "whole")


@dataclass(frozen=True)
class ValidationImages:
    """Images of one validation for one subject."""

    grid: Sequence[Pillow.Image]
    """Prompts x seeds, ordered by prompt."""
    classes: Sequence[Pillow.Image]
    """Images of the class prompt."""

    def rows(self, seeds: int) -> list[Sequence[Pillow.Image]]:
        """One row per prompt, the class prompt last."""
        rows = [self.grid[at : at + seeds] for at in range(0, len(self.grid), seeds)]
        return [*rows, self.classes] if self.classes else rows


@dataclass
class Validator:
    """Validates by the options of `validation`; sampler and encoders are those of the evaluation."""

    config: Config
    context: TrainingContext
    batches: MicroBatches
    """See `TrainingInputs.validation_batches`."""
    instance: ImageSet
    show: Callable[[int, Sequence[Sequence[Pillow.Image]]], None] = lambda step, rows: None
    """Receives the step and the rows of `ValidationImages.rows`."""
    photos: list[dict[EmbeddingKey, Embeddings]] = field(default_factory=list, init=False)
    """Identity embeddings of each subject's photos, computed by the first validation."""

    def __call__(self, module: DreamBooth, step: int) -> ValidationResult:
        """Validate the model at a step; raises `ModelError` if an encoder is missing."""
        rules = self.config.validation
        with _evaluating(module), module.inference_weights(), _forward(self.config, module.device):
            loss = stable_loss(module, self.batches, self.context.beat)
            images = None
            if rules.prompts:
                with self._merged(module):
                    images = self._generate(module)
        if images is None:
            return ValidationResult(step=step, stable_loss=loss)
        self.show(step, [row for each in images for row in each.rows(rules.seeds)])
        return ValidationResult(step=step, stable_loss=loss, **self._metrics(images))

    def _merged(self, module: DreamBooth) -> AbstractContextManager[None]:
        """Adapters merged into the base weights, as they are when the model is served."""
        if self.config.model.quantize != "none":
            return nullcontext()
        return adapters.merged(module.family, module.parts)

    def _generate(self, module: DreamBooth) -> list[ValidationImages]:
        """Grid and class images of each subject, with the same seeds at every validation."""
        config, side = self.config, self.config.model.resolution
        pipeline = pipeline_of(module, self.context)
        settings = SamplingSettings(lambda: pipeline, config.sampler, (side, side))
        found = []
        for subject in config.subjects:
            grid = validation_requests(config, subject)
            requests = grid + class_image_requests(config, subject)
            images = [*generate(pipeline, settings, requests, lambda *_: self.context.beat())]
            found.append(ValidationImages(images[: len(grid)], images[len(grid) :]))
        return found

    def _metrics(self, images: Sequence[ValidationImages]) -> dict[str, float | None]:
        """The image metrics of a `ValidationResult`, each the mean over the subjects."""
        rules, models = self.config.validation, self.config.evaluation
        clip = ImageEncoder(models.clip, models.clip_revision, models.preprocessing)
        texts = [
            clip.clip_texts(
                [without_identifier(subject, t) for t in rules.prompts for _ in range(rules.seeds)]
            )
            for subject in self.config.subjects
        ]
        clip_images = [clip.clip_images(each.grid) for each in images]
        del clip
        identity = load_identity_encoder(
            models.identity, models.identity_revision, models.preprocessing
        )
        encoder = SubjectEncoder(identity, local_detector(models.detector))
        self.photos = self.photos or self._photo_embeddings(encoder)
        evidence = [
            Evidence(
                generated=ImageEmbeddings(
                    {**encoder.embed(each.grid, subject.class_noun), CLIP_WHOLE: clip_images[index]}
                ),
                photos=ImageEmbeddings(self.photos[index]),
                classes=ImageEmbeddings(
                    {IDENTITY_WHOLE: encoder.embed_whole(each.classes)} if each.classes else {}
                ),
                text_rows=texts[index],
            )
            for index, (each, subject) in enumerate(zip(images, self.config.subjects, strict=True))
        ]

        def values(metric: ModuleType) -> list[Values]:
            return [metric.measure(one) for one in evidence]

        fidelity = [subject_fidelity_of(one) for one in evidence]
        return {
            "subject_fidelity": float(np.mean(fidelity)),
            "subject_error": standard_error(fidelity),
            "prompt_fidelity": float(np.mean(values(prompt_fidelity))),
            "pres": float(np.mean(values(pres))) if rules.class_images else None,
        }

    def _photo_embeddings(self, encoder: "SubjectEncoder") -> list[dict[EmbeddingKey, Embeddings]]:
        found = []
        for index, subject in enumerate(self.config.subjects):
            photos = photos_of_subject(self.context.store, self.instance, index)
            masks = [photos.mask(position) for position in range(len(photos))]
            found.append(encoder.embed(photos, subject.class_noun, masks))
        return found


@dataclass(frozen=True)
class SubjectEncoder:
    """Identity encoder, and the detector that crops the subject for it."""

    identity: IdentityEncoder
    detector: Detector | None

    def embed(
        self,
        images: Sequence[Pillow.Image],
        noun: str,
        masks: Sequence[Pillow.Image | None] | None = None,
    ) -> dict[EmbeddingKey, Embeddings]:
        """(images, d) each: of whole images and, with a detector, of crops; nan if no subject is found."""
        rows = {IDENTITY_WHOLE: self.embed_whole(images)}
        if self.detector is not None:
            rows[IDENTITY_CROP] = np.full_like(rows[IDENTITY_WHOLE], np.nan)
            found = enumerate(regions(self.detector, images, noun, masks))
            crops = {index: crop(images[index], region) for index, region in found if region}
            if crops:
                rows[IDENTITY_CROP][list(crops)] = self.embed_whole(list(crops.values()))
        return rows

    def embed_whole(self, images: Sequence[Pillow.Image]) -> Embeddings:
        """(images, d)"""
        return self.identity.identity_images(images)


def subject_fidelity_of(evidence: Evidence) -> Values:
    """Subject fidelity of each image, of crops if the subject is found in a photo, as in the gate.

    0 for an image in which the subject is not found.
    """
    cropped = subject_fidelity_crop.measure(evidence)
    values = cropped if cropped is not None else subject_fidelity.measure(evidence)
    assert values is not None  # embeddings of whole photos always exist
    return np.nan_to_num(values)


def standard_error(groups: Sequence[Values]) -> float | None:
    """Standard error of the mean of the groups' means, for groups of equal size; None for size 1."""
    if len(groups[0]) < 2:
        return None
    squares = [np.var(values, ddof=1) / len(values) for values in groups]
    return float(np.sqrt(np.sum(squares)) / len(groups))


def validation_requests(config: Config, subject: Subject) -> list[Request]:
    """The grid: prompts x seeds of the `dev` set, the same at every validation and in every run."""
    rules = config.validation
    return [
        (subject.fill(prompt), seed)
        for prompt in rules.prompts
        for seed in seeds_of(config, prompt, rules.seeds, "dev")
    ]


def class_image_requests(config: Config, subject: Subject) -> list[Request]:
    """Requests of the class images, the same at every validation and in every run."""
    rules, prompt = config.validation, subject.class_prompt
    seeds = seeds_of(config, prompt, rules.class_images, "dev")
    return [(subject.fill(prompt), seed) for seed in seeds]


@torch.no_grad()
def stable_loss(
    module: DreamBooth, batches: MicroBatches, beat: Callable[[], None] = lambda: None
) -> float:
    """Mean loss over `batches`, which hold instance images only."""
    loss, objective, losses = module.config.loss, module.objective, []
    for number in range(len(batches)):
        batch = _moved(batches[number], module.device)
        targets = target(objective, batch["latents"], batch["noise"], batch["times"])
        prediction, mask = module.predict(batch), batch.get("mask")
        losses.append(example_losses(loss, objective, prediction, targets, batch["times"], mask))
        beat()
    return float(torch.cat(losses).double().mean())


def pipeline_of(module: DreamBooth, context: TrainingContext) -> LoadedPipeline:
    """A pipeline that shares the components in training, with adapters and new tokens."""
    family, config, trained = module.family, module.config, module.parts
    absent = [name for name in family.text_encoders if name not in trained.components]
    text = family.load(context.base, only(context.base, *absent), text_numbers(config))
    autoencoder = family.load(context.base, only(context.base, family.autoencoder))[
        family.autoencoder
    ]
    channels_last(autoencoder)
    if module.device.type == "cuda":
        decode_one_by_one(autoencoder)
    _decode_in_float32(autoencoder)
    parts = {**text.components, **trained.components, family.autoencoder: autoencoder}
    for name in (family.autoencoder, *absent):
        if name in parts:
            parts[name].to(module.device)
    tokens = textual_inversion.tokens_of(config) if config.train.method in INVERSIONS else {}
    pipeline = family.pipeline(Parts(parts))
    return LoadedPipeline(
        pipeline, family.guidance(config.sampler), partial(textual_inversion.insert_tokens, tokens)
    )


@contextmanager
def _evaluating(module: DreamBooth) -> Iterator[None]:
    """Evaluation mode (no dropout) within the block; each module's own mode is restored afterwards."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode


def _forward(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to the number type of the training's forward pass."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    kind = kinds.get(resolved_precision(config.train.precision))
    return nullcontext() if kind is None else torch.autocast(device.type, dtype=kind)


def _decode_in_float32(autoencoder: Any) -> None:
    """Decode in float32 also under autocast: many autoencoders overflow in fp16."""
    decode = autoencoder.decode

    def decode_in_float32(latents: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        with torch.autocast(latents.device.type, enabled=False):
            return decode(latents.float(), *arguments, **named)

    autoencoder.decode = decode_in_float32


def _moved(batch: Batch, device: torch.device) -> Batch:
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
