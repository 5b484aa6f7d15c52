"""What a training lives on: photos and class images as latents, prompts as rows of a table.

Autoencoder and frozen text encoders are loaded only for what no cache has, and leave memory before
the first step.
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
from dreambooth_core.training import batches, latents, text_embeddings
from dreambooth_core.training.class_images import ClassImage
from dreambooth_core.training.latents import View

WAIT_SECONDS = 0.2


@dataclass(frozen=True)
class TrainingContext:
    """Where a training stands: its files, its device, its rank."""

    base: Path
    """The base model's folder."""
    store: Store
    device: torch.device
    rank: int = 0
    beat: Callable[[], None] = lambda: None
    """Told that there is progress."""


@dataclass(frozen=True)
class TrainingInputs:
    """All that the steps draw from."""

    steps: batches.MicroBatches
    stable: batches.MicroBatches
    """Photos of the stable loss: those held out, or all; each `validation.noise_draws` times."""
    prompts: tuple[str, ...]
    """The table's prompts, spelled with the new tokens if there are any."""
    conditioning: Tensors | None
    """A row per prompt; None where text encoders move and must read the prompts at every step."""


def prepare_inputs(
    config: Config,
    family: Family,
    place: TrainingContext,
    images: tuple[ImageSet, Sequence[ClassImage]],
    moving_text: bool,
) -> TrainingInputs:
    """Encode what is new, take the rest from the caches.

    Class images that are not there yet are waited for when they are drawn.
    """
    instance, planned = images
    config_size = config.model.resolution
    encoder = _autoencoder(config, family, place)
    cache = TensorCache("latents", config.paths.work / "caches", place.store)
    table = captions.prompts(config, instance)

    def photos(chosen: Sequence[int]) -> batches.InstanceData:
        members = [instance.images[index] for index in chosen]
        known = [image.size or (config_size, config_size) for image in members]
        sizes = assigned(known, config_size, config.dataset)
        return batches.InstanceData(
            source=latents.cached_latents(place.store, members, sizes, config, cache, encoder),
            subjects=tuple(image.subject for image in members),
            sizes=sizes,
            prompts=tuple(table.instance[index] for index in chosen),
        )

    trained, held = _split(instance, config.validation.held_out_photos)
    learned = photos(trained)
    classes = None
    if config.prior.enabled:
        classes = batches.ClassData(
            prompts=table.classes,
            source=_class_source(place, planned, config, cache, encoder) if planned else None,
            rows=tuple(table.table.index(item.prompt) for item in planned),
            sizes=tuple(item.size for item in planned),
        )
    plan = batches.BatchPlan(
        seed=config.seed,
        train=config.train,
        loss=config.loss,
        empty=table.empty,
        rank=place.rank,
        ranks=config.train.num_processes,
    )
    tokens = textual_inversion.tokens_of(config) if config.train.method in INVERSIONS else {}
    prompts = tuple(textual_inversion.insert_tokens(tokens, prompt) for prompt in table.table)
    return TrainingInputs(
        steps=batches.MicroBatches(plan, learned, classes),
        stable=_stable(config, photos(held) if held else learned),
        prompts=prompts,
        conditioning=None if moving_text else _conditioning(config, family, place, prompts),
    )


def _class_source(
    place: TrainingContext,
    planned: Sequence[ClassImage],
    config: Config,
    cache: TensorCache,
    encoder: latents.LatentEncoder,
) -> batches.LatentSource:
    """All class images encoded at once, or with `prior.generate_in_background` one by one as they arrive."""
    if config.prior.generate_in_background:
        return AwaitedClassImages(
            place, planned, config, cache, replace(encoder, load=once(encoder.load))
        )
    images = [get_record(place.store, item.key, Image) for item in planned]
    missing = [item.key for item, image in zip(planned, images, strict=True) if image is None]
    if missing:
        raise StageFailed(f"the class image {missing[0]} is missing: run again to make it")
    there = [image for image in images if image is not None]
    sizes = [item.size for item in planned]
    return latents.cached_latents(place.store, there, sizes, config, cache, encoder)


@dataclass
class AwaitedClassImages:
    """Class images by number, each awaited in the store; a `LatentSource` of batches."""

    place: TrainingContext
    planned: Sequence[ClassImage]
    config: Config
    cache: TensorCache
    encoder: latents.LatentEncoder
    _seen: dict[int, latents.CachedLatents] = field(default_factory=dict)

    def get(self, index: int, view: int) -> View:
        if index not in self._seen:
            item = self.planned[index]
            image = self._awaited(item)
            store, config = self.place.store, self.config
            self._seen[index] = latents.cached_latents(
                store, [image], [item.size], config, self.cache, self.encoder
            )
        return self._seen[index].get(0, view)

    def _awaited(self, item: ClassImage) -> Image:
        while (image := get_record(self.place.store, item.key, Image)) is None:
            self.place.beat()
            time.sleep(WAIT_SECONDS)
        return image


def _split(instance: ImageSet, held_out: int) -> tuple[list[int], list[int]]:
    """Photos to train on, and each subject's last ones by name, which are only looked at."""
    held: list[int] = []
    for subject in {image.subject for image in instance.images}:
        theirs = [i for i, image in enumerate(instance.images) if image.subject == subject]
        theirs.sort(key=lambda index: instance.images[index].name)
        if held_out >= len(theirs):
            raise StageFailed(
                f"validation.held_out_photos {held_out} leaves none of the {len(theirs)} photos to train "
                "on: lower it, or bring more photos"
            )
        held += theirs[len(theirs) - held_out :]
    return [index for index in range(instance.count) if index not in held], sorted(held)


def _stable(config: Config, photos: batches.InstanceData) -> batches.MicroBatches:
    """Fixed photos, noises and times: a walk that shows every subject equally often."""
    plain: dict[str, float] = {
        "gradient_accumulation_steps": 1,
        "batch_size": 1,
        "num_processes": 1,
        "flip": False,
        "crops": 1,
    }
    plain |= {"caption_dropout": 0.0, "steps": len(photos.prompts) * config.validation.noise_draws}
    plan = batches.BatchPlan(
        seed=seed_for(config.seed, "stable loss", 0),
        train=config.train.model_copy(update=plain),
        loss=config.loss,
    )
    return batches.MicroBatches(plan, photos, None)


def _autoencoder(config: Config, family: Family, place: TrainingContext) -> latents.LatentEncoder:
    def load() -> Callable[[torch.Tensor], LatentDistribution]:
        parts = family.load(place.base, only(place.base, family.autoencoder))
        parts[family.autoencoder].to(place.device)
        return lambda pixels: family.encode_images(parts, pixels.to(place.device))

    digest = base_model.component_digest(place.base, [family.autoencoder])
    return latents.LatentEncoder(digest, "float32", load)


def _conditioning(
    config: Config, family: Family, place: TrainingContext, prompts: Sequence[str]
) -> Tensors:
    def load() -> Callable[[str], Tensors]:
        parts = family.load(place.base, only(place.base, *family.text_encoders))
        for name in family.text_encoders:
            if name in parts.components:
                parts[name].to(place.device)

        def encode(prompt: str) -> Tensors:
            tokens = family.tokenize(parts, [prompt])
            placed = {name: value.to(place.device) for name, value in tokens.items()}
            return family.encode_prompts(parts, placed)

        return encode

    unread = {"pipeline", "scheduler", family.denoiser, family.autoencoder}
    read = model_index(place.base).keys() - unread
    # two families may read one text encoder, each in its own way
    digest = f"{config.model.family} {base_model.component_digest(place.base, sorted(read))}"
    cache = TensorCache("embeddings", config.paths.work / "caches", place.store)
    return text_embeddings.text_embeddings(
        prompts, cache, text_embeddings.TextEncoder(digest, "float32", load)
    ).rows
