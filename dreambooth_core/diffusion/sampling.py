"""Image generation: one seed per image, full batches, lossless PNG, each image stored once."""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from dreambooth_core import telemetry
from dreambooth_core.config import Config, Sampler
from dreambooth_core.console import Progress
from dreambooth_core.diffusion import base_model
from dreambooth_core.diffusion.pipelines import (
    LoadedPipeline,
    WeightMix,
    mix_of,
)
from dreambooth_core.digests import digest_json
from dreambooth_core.errors import StorageError
from dreambooth_core.randomness import seed_for
from dreambooth_core.storage.blobs import get_record, image_set, put_blob, put_record
from dreambooth_core.storage.records import Image, Record, SampleSet, SeedSet, Weights
from dreambooth_core.storage.stage_cache import stage_key
from dreambooth_core.storage.stores import Store

__all__ = [
    "ORIGIN_FILE",
    "Request",
    "SampleOrigin",
    "SamplingSettings",
    "each_image",
    "encode_png",
    "generate",
    "grid",
    "image_key",
    "images_prefix",
    "make_images",
    "sample_origin",
    "sample_set",
]

ORIGIN_FILE = "sample_origin.json"
"""Name of the record `SampleOrigin` below a prefix of images."""

Request = tuple[str, int]
"""A prompt and a seed."""


ImagePool = Callable[[Sequence["Request"], Progress | None], None]
"""Generates missing images in other processes and stores them; raises what sampling raises."""


class SampleOrigin(Record):
    """All that determines images besides prompt and seed: the record `<prefix>/sample_origin.json`."""

    family: str
    base: str
    """Digest of the base's files."""
    weights: tuple[tuple[str, float], ...]
    """Digest and strength of each of the weights applied to the base."""
    sampler: Sampler
    size: tuple[int, int]
    """Height and width in pixels."""

    @property
    def prefix(self) -> str:
        """Key prefix of these images in the store."""
        return f"images/{stage_key('images', self.model_dump())}"


@dataclass(frozen=True)
class SamplingSettings:
    """Pipeline, sampler and size of images, and the processes that generate them."""

    load: Callable[[], LoadedPipeline]
    """Returns the pipeline; called only when an image is missing, possibly several times."""
    sampler: Sampler
    size: tuple[int, int]
    """Height and width in pixels."""
    origin: SampleOrigin | None = None
    """Stored beside the images, so that search can tell which model made them."""
    pool: ImagePool | None = None
    """Generates images in other processes; None: in this one."""


def generate(
    pipeline: LoadedPipeline,
    settings: SamplingSettings,
    requests: Sequence[Request],
    progress: Progress | None,
) -> Iterator[Pillow.Image]:
    """One image per request, in order.

    Each image has its own CPU generator, and the last batch is padded with repeats, so that no bit
    of an image depends on the other requests. Both halves of classifier-free guidance (Ho &
    Salimans 2022, arXiv:2207.12598) are computed in one forward.
    """
    import torch

    size, (height, width) = settings.sampler.batch_size, settings.size
    guidance = dict(pipeline.guidance)
    if "negative_prompt" in guidance:
        guidance["negative_prompt"] = [guidance["negative_prompt"]] * size
    for start in range(0, len(requests), size):
        batch = list(requests[start : start + size])
        padded = batch + [batch[-1]] * (size - len(batch))
        images = pipeline.pipeline(
            prompt=[pipeline.rewrite_prompt(prompt) for prompt, _ in padded],
            generator=[torch.Generator().manual_seed(seed) for _, seed in padded],
            num_inference_steps=settings.sampler.inference_steps,
            height=height,
            width=width,
            **guidance,
        ).images
        telemetry.send("dreambooth_images_total", len(batch))
        yield from images[: len(batch)]
        if progress is not None:
            progress(start + len(batch), len(requests), "images")


def encode_png(
    image: Pillow.Image, prompt: str, seed: int, extra: dict[str, str] | None = None
) -> bytes:
    """PNG file; equal images and texts give equal bytes.

    Text entries: `prompt`, `seed`, `pixels_sha256` (over the RGB bytes, row by row) and `extra`.
    """
    image = image.convert("RGB")
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    texts = {"prompt": prompt, "seed": str(seed), "pixels_sha256": digest, **(extra or {})}
    info = PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info, compress_level=6)
    return file.getvalue()


def make_images(
    store: Store,
    prefix: str,
    settings: SamplingSettings,
    requests: Sequence[Request],
    progress: Progress | None = None,
) -> tuple[tuple[Image, ...], int]:
    """The images of `requests`, named by their index, and the number of newly generated ones."""
    by_request = {
        request: (image, made)
        for request, image, made in each_image(store, prefix, settings, requests, progress)
    }
    named = [
        by_request[request][0].model_copy(update={"name": f"{index:06d}.png"})
        for index, request in enumerate(requests)
    ]
    return tuple(named), sum(made for _, made in by_request.values())


def each_image(
    store: Store,
    prefix: str,
    settings: SamplingSettings,
    requests: Sequence[Request],
    progress: Progress | None = None,
) -> Iterator[tuple[Request, Image, bool]]:
    """Each distinct request with its image and whether it is new; stored images come first.

    `prefix` identifies model, sampler and size. An image's record `image_key(prefix, request)` is
    created once, after its blob, so that several processes may generate the same requests and
    different lists of requests share images.
    """
    missing = []
    for request in dict.fromkeys(requests):
        found = get_record(store, image_key(prefix, request), Image)
        if found is None:
            missing.append(request)
        else:
            yield request, found, False
    if missing and settings.origin is not None:
        put_record(store, f"{prefix}/{ORIGIN_FILE}", settings.origin)
    if missing and settings.pool is not None:
        settings.pool(missing, progress)
        for request in missing:
            yield request, _made_by_pool(store, image_key(prefix, request)), True
    elif missing:
        images = generate(settings.load(), settings, missing, progress)
        for request, image in zip(missing, images, strict=True):
            yield request, _store_image(store, image_key(prefix, request), request, image), True


def image_key(prefix: str, request: Request) -> str:
    """Key of an image's record below a prefix."""
    return f"{prefix}/{digest_json(request)}.json"


def _store_image(store: Store, key: str, request: Request, image: Pillow.Image) -> Image:
    """Store an image and its record; returns the existing record if another process was first."""
    prompt, seed = request
    blob = put_blob(store, encode_png(image, prompt, seed))
    size = (image.height, image.width)
    record = Image(name=f"{blob.sha256}.png", blob=blob, prompt=prompt, seed=seed, size=size)
    if put_record(store, key, record):
        return record
    return get_record(store, key, Image) or record


def _made_by_pool(store: Store, key: str) -> Image:
    found = get_record(store, key, Image)
    if found is None:
        raise StorageError(
            f"{key} was generated but is not in {store.uri}: give all machines the same store"
        )
    return found


def sample_set(
    store: Store,
    prefix: str,
    settings: SamplingSettings,
    requests: Sequence[Request],
    progress: Progress | None = None,
) -> SampleSet:
    """The requests' images as one set; only missing ones are generated (see `make_images`)."""
    images, _ = make_images(store, prefix, settings, requests, progress)
    return image_set(store, f"{prefix}/sets", images, SampleSet)


def images_prefix(
    config: Config, weights: Weights | WeightMix | None, size: tuple[int, int] | None = None
) -> str:
    """Key prefix in the store of the images of a model, sampler and size (see `sample_origin`).

    Samples of a run, evaluations and sampling jobs with equal settings share their images.
    """
    return sample_origin(config, weights, size).prefix


def sample_origin(
    config: Config, weights: Weights | WeightMix | None, size: tuple[int, int] | None = None
) -> SampleOrigin:
    """Origin of the images of a config's base and weights; default size: `model.resolution` squared."""
    side = config.model.resolution
    return SampleOrigin(
        family=config.model.family,
        base=base_model.base_digest(config.model),
        weights=tuple((one.weights.digest, one.strength) for one in mix_of(weights)),
        sampler=config.sampler,
        size=size or (side, side),
    )


def grid(config: Config, prompts: Sequence[str], seeds: int, stream: str) -> list[Request]:
    """Filled prompts x seeds, grouped by prompt; every prompt gets the same seeds."""
    return [
        (config.subject.fill(prompt), seed_for(config.seed, stream, index))
        for prompt in prompts
        for index in range(seeds)
    ]


def seeds_of(config: Config, template: str, count: int, seed_set: SeedSet) -> list[int]:
    """The first `count` evaluation seeds of a prompt template."""
    stream = f"evaluate {seed_set} {template}"
    return [seed_for(config.evaluation.seed, stream, index) for index in range(count)]
