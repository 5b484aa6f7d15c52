"""Training inputs: cached latents, and one conditioning row per prompt.

Autoencoder and frozen text encoders are loaded only for what is not cached, and freed before the
first step.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache as once
from pathlib import Path

import torch

from dreambooth_core.config import INVERSIONS, Config
from dreambooth_core.data import captions
from dreambooth_core.data.buckets import assigned
from dreambooth_core.diffusion import base_model, textual_inversion
from dreambooth_core.diffusion.families import Family, Tensors, only
from dreambooth_core.diffusion.latents import LatentDistribution
from dreambooth_core.diffusion.model_folders import model_index
from dreambooth_core.errors import StageFailed
from dreambooth_core.randomness import seed_for
from dreambooth_core.storage.blobs import get_record
from dreambooth_core.storage.records import Image, ImageSet
from dreambooth_core.storage.stores import Store
from dreambooth_core.storage.tensor_cache import TensorCache
from dreambooth_core.training import batches, latents, precision, text_embeddings
from dreambooth_core.training.class_images import ClassImage
from dreambooth_core.training.latents import View

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class TrainingContext:
    """Base model, store, device and rank of a training process."""

    base: Path
    """The base model's folder."""
    store: Store
    device: torch.device
    rank: int = 0
    beat: Callable[[], None] = lambda: None
    """Called at every sign of progress, for the watchdog."""


@dataclass(frozen=True)
class TrainingInputs:
    """Batches and prompts of a training."""

    train_batches: batches.MicroBatches
    validation_batches: batches.MicroBatches
    """Held-out photos, or all without any, each with `validation.noise_draws` fixed noises and times."""
    prompts: tuple[str, ...]
    """The prompt table, with the new tokens of textual inversion written out."""
    conditioning: Tensors | None
    """One row per prompt; None if text encoders train and encode the prompts at every step."""


def prepare_inputs(
    config: Config,
    family: Family,
    context: TrainingContext,
    instance: ImageSet,
    planned: Sequence[ClassImage],
    trains_text: bool,
) -> TrainingInputs:
    """Encode images and prompts that are not cached, and set up the batches.

    With `prior.generate_in_background`, class images are awaited when a batch needs them. Raises
    `StageFailed` if one is missing otherwise.
    """
    resolution = config.model.resolution
    encoder = _autoencoder(config, family, context)
    cache = TensorCache("latents", config.paths.work / "caches", context.store)
    table = captions.prompts(config, instance)

    def photos(chosen: Sequence[int]) -> batches.InstanceData:
        images = [instance.images[index] for index in chosen]
        known = [image.size or (resolution, resolution) for image in images]
        sizes = assigned(known, resolution, config.dataset)
        return batches.InstanceData(
            source=latents.cached_latents(context.store, images, sizes, config, cache, encoder),
            subjects=tuple(image.subject for image in images),
            sizes=sizes,
            prompts=tuple(table.instance[index] for index in chosen),
        )

    trained, held_out = _split_photos(instance, config.validation.held_out_photos)
    train_photos = photos(trained)
    classes = None
    if config.prior.enabled:
        classes = batches.ClassData(
            prompts=table.classes,
            source=_class_source(context, planned, config, cache, encoder) if planned else None,
            rows=tuple(table.table.index(item.prompt) for item in planned),
            sizes=tuple(item.size for item in planned),
        )
    plan = batches.BatchPlan(
        seed=config.seed,
        train=config.train,
        loss=config.loss,
        empty=table.empty,
        rank=context.rank,
        ranks=config.train.num_processes,
    )
    tokens = textual_inversion.tokens_of(config) if config.train.method in INVERSIONS else {}
    prompts = tuple(textual_inversion.insert_tokens(tokens, prompt) for prompt in table.table)
    return TrainingInputs(
        train_batches=batches.MicroBatches(plan, train_photos, classes),
        validation_batches=_validation_batches(
            config, photos(held_out) if held_out else train_photos
        ),
        prompts=prompts,
        conditioning=None if trains_text else _conditioning(config, family, context, prompts),
    )


def _class_source(
    context: TrainingContext,
    planned: Sequence[ClassImage],
    config: Config,
    cache: TensorCache,
    encoder: latents.LatentEncoder,
) -> batches.LatentSource:
    """All class images encoded now, or with `prior.generate_in_background` each when a batch needs it."""
    if config.prior.generate_in_background:
        return AwaitedClassImages(
            context, planned, config, cache, replace(encoder, load=once(encoder.load))
        )
    images = [get_record(context.store, item.key, Image) for item in planned]
    missing = [item.key for item, image in zip(planned, images, strict=True) if image is None]
    if missing:
        raise StageFailed(f"the class image {missing[0]} is missing: run again to make it")
    found = [image for image in images if image is not None]
    sizes = [item.size for item in planned]
    return latents.cached_latents(context.store, found, sizes, config, cache, encoder)


@dataclass
class AwaitedClassImages:
    """Class images by index, each awaited in the store; a `LatentSource` of batches."""

    context: TrainingContext
    planned: Sequence[ClassImage]
    config: Config
    cache: TensorCache
    encoder: latents.LatentEncoder
    _encoded: dict[int, latents.CachedLatents] = field(default_factory=dict)

    def get(self, index: int, view: int) -> View:
        if index not in self._encoded:
            item = self.planned[index]
            image = self._awaited(item)
            store, config = self.context.store, self.config
            self._encoded[index] = latents.cached_latents(
                store, [image], [item.size], config, self.cache, self.encoder
            )
        return self._encoded[index].get(0, view)

    def _awaited(self, item: ClassImage) -> Image:
        while (image := get_record(self.context.store, item.key, Image)) is None:
            self.context.beat()
            time.sleep(POLL_SECONDS)
        return image


def _split_photos(instance: ImageSet, held_out: int) -> tuple[list[int], list[int]]:
    """Indices of the photos to train on, and of each subject's last `held_out` ones by name."""
    held: list[int] = []
    for subject in {image.subject for image in instance.images}:
        own = [i for i, image in enumerate(instance.images) if image.subject == subject]
        own.sort(key=lambda index: instance.images[index].name)
        if held_out >= len(own):
            raise StageFailed(
                f"validation.held_out_photos {held_out} leaves none of the {len(own)} photos to train "
                "on: lower it, or add photos"
            )
        held += own[len(own) - held_out :]
    return [index for index in range(instance.count) if index not in held], sorted(held)


def _validation_batches(config: Config, photos: batches.InstanceData) -> batches.MicroBatches:
    """Batches of one photo without augmentation: `noise_draws` per photo, balanced over subjects."""
    fixed: dict[str, float] = {
        "gradient_accumulation_steps": 1,
        "batch_size": 1,
        "num_processes": 1,
        "flip": False,
        "crops": 1,
    }
    fixed |= {"caption_dropout": 0.0, "steps": len(photos.prompts) * config.validation.noise_draws}
    plan = batches.BatchPlan(
        seed=seed_for(config.seed, "stable loss", 0),
        train=config.train.model_copy(update=fixed),
        loss=config.loss,
    )
    return batches.MicroBatches(plan, photos, None)


def _autoencoder(config: Config, family: Family, context: TrainingContext) -> latents.LatentEncoder:
    def load() -> Callable[[torch.Tensor], LatentDistribution]:
        parts = family.load(context.base, only(context.base, family.autoencoder))
        parts[family.autoencoder].to(context.device)
        return lambda pixels: family.encode_images(parts, pixels.to(context.device))

    digest = base_model.component_digest(context.base, [family.autoencoder])
    return latents.LatentEncoder(digest, "float32", load)


def _conditioning(
    config: Config, family: Family, context: TrainingContext, prompts: Sequence[str]
) -> Tensors:
    dtype = precision.text_numbers(config)

    def load() -> Callable[[str], Tensors]:
        parts = family.load(context.base, only(context.base, *family.text_encoders), dtype)
        for name in family.text_encoders:
            if name in parts.components:
                parts[name].to(context.device)

        def encode(prompt: str) -> Tensors:
            tokens = family.tokenize(parts, [prompt])
            moved = {name: value.to(context.device) for name, value in tokens.items()}
            rows = family.encode_prompts(parts, moved)
            return {
                name: value.float() if value.is_floating_point() else value
                for name, value in rows.items()
            }

        return encode

    others = {"pipeline", "scheduler", family.denoiser, family.autoencoder}
    text_components = sorted(model_index(context.base).keys() - others)
    # two families may use the same text encoder differently
    digest = f"{config.model.family} {base_model.component_digest(context.base, text_components)}"
    cache = TensorCache("embeddings", config.paths.work / "caches", context.store)
    return text_embeddings.text_embeddings(
        prompts, cache, text_embeddings.TextEncoder(digest, str(dtype).partition(".")[2], load)
    ).rows
