"""Looks at the model while it trains: its loss on fixed draws, and a small grid, measured.

A look hangs on the weights alone and leaves no trace in them, so that a training with looks takes
the very steps of one without. What only a look needs, as autoencoder and frozen text encoders, is
loaded for it and dropped after it.
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
from dreambooth_core.config.inputs import plain
from dreambooth_core.diffusion import textual_inversion
from dreambooth_core.diffusion.families import Parts, channels_last, only
from dreambooth_core.diffusion.objectives import example_losses, target
from dreambooth_core.diffusion.pipelines import LoadedPipeline
from dreambooth_core.diffusion.sampling import (
    Request,
    SamplingSettings,
    generate,
    seeds_of,
)
from dreambooth_core.metrics import Evidence, ImageEmbeddings, Sight, Values
from dreambooth_core.metrics.embeddings import photos_of
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
from dreambooth_core.training.precision import frozen_numbers, resolved_precision
from dreambooth_core.vision.crops import crop, regions
from dreambooth_core.vision.detectors import Detector, load_detector
from dreambooth_core.vision.embeddings import Embeddings
from dreambooth_core.vision.encoders import ImageEncoder

Picture = Pillow.Image
WHOLE: Sight = ("identity", "whole")
ALONE: Sight = ("identity", "crop")
ASKED: Sight = ("clip", "whole")


@dataclass(frozen=True)
class ValidationImages:
    """What a look drew for one subject."""

    grid: Sequence[Picture]
    """Prompts x seeds, prompt by prompt."""
    classes: Sequence[Picture]
    """Of the class prompt."""

    def rows(self, seeds: int) -> list[Sequence[Picture]]:
        """A row per prompt, the class prompt's the last."""
        rows = [self.grid[at : at + seeds] for at in range(0, len(self.grid), seeds)]
        return [*rows, self.classes] if self.classes else rows


@dataclass
class Validator:
    """Looks, by the options of `best_step`; the grid and its encoders by those of the evaluation."""

    config: Config
    place: TrainingContext
    stable: MicroBatches
    """See `Supply.stable`."""
    instance: ImageSet
    show: Callable[[int, Sequence[Sequence[Picture]]], None] = lambda step, rows: None
    """Given the step and what was drawn, as `ValidationImages.rows` has it."""
    photos: list[dict[Sight, Embeddings]] = field(default_factory=list, init=False)
    """Each subject's, as the identity encoder sees them; from the first look on."""

    def __call__(self, module: DreamBooth, step: int) -> ValidationResult:
        """Raises `ModelError` when an encoder is missing."""
        rules = self.config.validation
        with _evaluating(module), module.served(), _forward(self.config, module.device):
            loss = stable_loss(module, self.stable, self.place.beat)
            drawn = self._draw(module) if rules.prompts else None
        if drawn is None:
            return ValidationResult(step=step, stable_loss=loss)
        self.show(step, [row for each in drawn for row in each.rows(rules.seeds)])
        return ValidationResult(step=step, stable_loss=loss, **self._measured(drawn))

    def _draw(self, module: DreamBooth) -> list["ValidationImages"]:
        """Each subject's grid and class images, whose seeds are the same at every look."""
        config, side = self.config, self.config.model.resolution
        painter = painter_of(module, self.place)
        drawing = SamplingSettings(lambda: painter, config.sampler, (side, side))
        found = []
        for subject in config.subjects:
            grid, classes = (
                validation_requests(config, subject),
                class_image_requests(config, subject),
            )
            images = [*generate(painter, drawing, grid + classes, lambda *_: self.place.beat())]
            found.append(ValidationImages(images[: len(grid)], images[len(grid) :]))
        return found

    def _measured(self, drawn: Sequence["ValidationImages"]) -> dict[str, float | None]:
        """What a `ValidationResult` says of the images, each the mean over the subjects."""
        clip, rules = self._clip(), self.config.validation
        texts = [
            clip.clip_texts([plain(subject, t) for t in rules.prompts for _ in range(rules.seeds)])
            for subject in self.config.subjects
        ]
        seen = [clip.clip_images(each.grid) for each in drawn]
        del clip
        eyes = self._eyes()
        self.photos = self.photos or self._see_photos(eyes)
        evidence = [
            Evidence(
                generated=ImageEmbeddings(
                    {**eyes.see(each.grid, subject.class_noun), ASKED: seen[index]}
                ),
                photos=ImageEmbeddings(self.photos[index]),
                classes=ImageEmbeddings({WHOLE: eyes.whole(each.classes)} if each.classes else {}),
                text_rows=texts[index],
            )
            for index, (each, subject) in enumerate(zip(drawn, self.config.subjects, strict=True))
        ]

        def values(metric: ModuleType) -> list[Values]:
            return [metric.measure(one) for one in evidence]

        likeness = [subject_fidelity_of(one) for one in evidence]
        return {
            "subject_fidelity": float(np.mean(likeness)),
            "subject_error": standard_error(likeness),
            "prompt_fidelity": float(np.mean(values(prompt_fidelity))),
            "pres": float(np.mean(values(pres))) if rules.class_images else None,
        }

    def _see_photos(self, eyes: "SubjectEncoder") -> list[dict[Sight, Embeddings]]:
        found = []
        for index, subject in enumerate(self.config.subjects):
            photos = photos_of(self.place.store, self.instance, index)
            masks = [photos.mask(place) for place in range(len(photos))]
            found.append(eyes.see(photos, subject.class_noun, masks))
        return found

    def _clip(self) -> ImageEncoder:
        rules = self.config.evaluation
        return ImageEncoder(rules.clip, rules.clip_revision, rules.preprocessing)

    def _eyes(self) -> "SubjectEncoder":
        rules = self.config.evaluation
        identity = ImageEncoder(rules.identity, rules.identity_revision, rules.preprocessing)
        return SubjectEncoder(identity, load_detector(rules.detector))


@dataclass(frozen=True)
class SubjectEncoder:
    """The identity encoder, and who finds the subject for it."""

    identity: ImageEncoder
    finder: Detector | None

    def see(
        self,
        pictures: Sequence[Picture],
        noun: str,
        masks: Sequence[Picture | None] | None = None,
    ) -> dict[Sight, Embeddings]:
        """(pictures, d) each: whole, and with a finder the subject alone, nan where it is not seen."""
        rows = {WHOLE: self.whole(pictures)}
        if self.finder is not None:
            rows[ALONE] = np.full_like(rows[WHOLE], np.nan)
            found = enumerate(regions(self.finder, pictures, noun, masks))
            cuts = {place: crop(pictures[place], spot) for place, spot in found if spot}
            if cuts:
                rows[ALONE][list(cuts)] = self.whole(list(cuts.values()))
        return rows

    def whole(self, pictures: Sequence[Picture]) -> Embeddings:
        """(pictures, d)"""
        return self.identity.identity_images(pictures)


def subject_fidelity_of(evidence: Evidence) -> Values:
    """Subject fidelity of each picture: of the subject alone, where it is found in a photo.

    A copied background counts as little here as in the gate; a picture without the subject is as unlike as
    can be told, 0.
    """
    alone = subject_fidelity_crop.measure(evidence)
    values = alone if alone is not None else subject_fidelity.measure(evidence)
    assert values is not None  # photos are there, and seen as wholes
    return np.nan_to_num(values)


def standard_error(groups: Sequence[Values]) -> float | None:
    """Of the mean over equally large groups, each of which has a mean of its own; None for single values."""
    if len(groups[0]) < 2:
        return None
    squares = [np.var(values, ddof=1) / len(values) for values in groups]
    return float(np.sqrt(np.sum(squares)) / len(groups))


def validation_requests(config: Config, subject: Subject) -> list[Request]:
    """A look's grid: prompts x seeds of the `dev` set, the same at every look and in every run."""
    rules = config.validation
    return [
        (subject.fill(prompt), seed)
        for prompt in rules.prompts
        for seed in seeds_of(config, prompt, rules.seeds, "dev")
    ]


def class_image_requests(config: Config, subject: Subject) -> list[Request]:
    """A look's class images, the same at every look and in every run."""
    rules, prompt = config.validation, subject.class_prompt
    seeds = seeds_of(config, prompt, rules.class_images, "dev")
    return [(subject.fill(prompt), seed) for seed in seeds]


@torch.no_grad()
def stable_loss(
    module: DreamBooth, steps: MicroBatches, beat: Callable[[], None] = lambda: None
) -> float:
    """Mean loss over all batches of `steps`, of instance images alone."""
    loss, objective, losses = module.config.loss, module.objective, []
    for number in range(len(steps)):
        batch = _placed(steps[number], module.device)
        wanted = target(objective, batch["latents"], batch["noise"], batch["times"])
        answer, mask = module.answer(batch), batch.get("mask")
        losses.append(example_losses(loss, objective, answer, wanted, batch["times"], mask))
        beat()
    return float(torch.cat(losses).double().mean())


def painter_of(module: DreamBooth, place: TrainingContext) -> LoadedPipeline:
    """A pipeline around the very parts in training, adapters and new tokens included."""
    family, config, here = module.family, module.config, module.parts
    absent = [name for name in family.text_encoders if name not in here.components]
    text = family.load(place.base, only(place.base, *absent), frozen_numbers(config))
    autoencoder = family.load(place.base, only(place.base, family.autoencoder))[family.autoencoder]
    channels_last(autoencoder)
    _decode_in_float32(autoencoder)
    parts = {**text.components, **here.components, family.autoencoder: autoencoder}
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
    """Without dropout while it lasts; every part is afterwards in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _forward(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """The number type in which the model computes while it trains."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    kind = kinds.get(resolved_precision(config.train.precision))
    return nullcontext() if kind is None else torch.autocast(device.type, dtype=kind)


def _decode_in_float32(autoencoder: Any) -> None:
    """Whatever the number type around it: many an autoencoder overflows in fp16."""
    decode = autoencoder.decode

    def exact(latents: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        with torch.autocast(latents.device.type, enabled=False):
            return decode(latents.float(), *arguments, **named)

    autoencoder.decode = exact


def _placed(batch: Batch, device: torch.device) -> Batch:
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
