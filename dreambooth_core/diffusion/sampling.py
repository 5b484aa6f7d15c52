"""Images out of a model: one seed per image, full batches always, lossless, made once."""

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
    "base_digest",
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

Request = tuple[str, int]
"""A prompt and a seed."""


ImagePool = Callable[[Sequence["Request"], Progress | None], None]
"""Makes images be in the store; raises what drawing raises."""


class SampleOrigin(Record):
    """All that decides images but prompt and seed: the record `<prefix>/sample_origin.json` of a prefix."""

    family: str
    base: str
    """Digest of the base's files."""
    weights: tuple[tuple[str, float], ...]
    """Digests and strengths of what was put into the base."""
    sampler: Sampler
    size: tuple[int, int]
    """Height and width in pixels."""

    @property
    def prefix(self) -> str:
        """Where such images lie in the store."""
        return f"images/{stage_key('images', self.model_dump())}"


@dataclass(frozen=True)
class SamplingSettings:
    """How images are drawn, and by whom."""

    load: Callable[[], LoadedPipeline]
    """Called when, and only when, an image is missing; it may be called again and again."""
    sampler: Sampler
    size: tuple[int, int]
    """Height and width in pixels."""
    origin: SampleOrigin | None = None
    """Kept beside the images, if anyone is to find out later whose they are."""
    pool: ImagePool | None = None
    """Other processes that draw; without them, this one does."""


def generate(
    painter: LoadedPipeline,
    drawing: SamplingSettings,
    requests: Sequence[Request],
    progress: Progress | None,
) -> Iterator[Pillow.Image]:
    """One image per request, in order.

    Each image has a CPU generator of its own, and the last batch is filled up with repeats: neither
    its neighbours nor the number of images decide a bit of it. Both halves of classifier-free
    guidance (Ho & Salimans 2022, arXiv:2207.12598) go through one forward.
    """
    import torch

    size, (height, width) = drawing.sampler.batch_size, drawing.size
    guidance = dict(painter.guidance)
    if "negative_prompt" in guidance:
        guidance["negative_prompt"] = [guidance["negative_prompt"]] * size
    for start in range(0, len(requests), size):
        batch = list(requests[start : start + size])
        padded = batch + [batch[-1]] * (size - len(batch))
        made = painter.pipeline(
            prompt=[painter.rewrite_prompt(prompt) for prompt, _ in padded],
            generator=[torch.Generator().manual_seed(seed) for _, seed in padded],
            num_inference_steps=drawing.sampler.inference_steps,
            height=height,
            width=width,
            **guidance,
        ).images
        telemetry.send("dreambooth_images_total", len(batch))
        yield from made[: len(batch)]
        if progress is not None:
            progress(start + len(batch), len(requests), "images")


def encode_png(
    image: Pillow.Image, prompt: str, seed: int, extra: dict[str, str] | None = None
) -> bytes:
    """The same image and texts always give the same bytes.

    Text entries: `prompt`, `seed`, `pixels_sha256` (over the RGB values, row by row) and `extra`.
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
    drawing: SamplingSettings,
    requests: Sequence[Request],
    progress: Progress | None = None,
) -> tuple[tuple[Image, ...], int]:
    """The images of `requests`, named by their places, and how many had to be made."""
    drawn = {
        request: (image, made)
        for request, image, made in each_image(store, prefix, drawing, requests, progress)
    }
    named = [
        drawn[request][0].model_copy(update={"name": f"{place:06d}.png"})
        for place, request in enumerate(requests)
    ]
    return tuple(named), sum(made for _, made in drawn.values())


def each_image(
    store: Store,
    prefix: str,
    drawing: SamplingSettings,
    requests: Sequence[Request],
    progress: Progress | None = None,
) -> Iterator[tuple[Request, Image, bool]]:
    """Every different request with its image, and whether that had to be made; found ones first.

    `prefix` stands for model, sampler and size. An image is the record `image_key(prefix, request)`,
    created once, after its blob: any process can make any image at any time, and every list of
    requests finds those that another one has had made.
    """
    missing = []
    for request in dict.fromkeys(requests):
        found = get_record(store, image_key(prefix, request), Image)
        if found is None:
            missing.append(request)
        else:
            yield request, found, False
    if missing and drawing.origin is not None:
        put_record(store, f"{prefix}/{ORIGIN_FILE}", drawing.origin)
    if missing and drawing.pool is not None:
        drawing.pool(missing, progress)
        for request in missing:
            yield request, _made_by_others(store, image_key(prefix, request)), True
    elif missing:
        images = generate(drawing.load(), drawing, missing, progress)
        for request, image in zip(missing, images, strict=True):
            yield request, _committed(store, image_key(prefix, request), request, image), True


def image_key(prefix: str, request: Request) -> str:
    """Where an image's record lies below a prefix: by what was asked for, whatever the list."""
    return f"{prefix}/{digest_json(request)}.json"


def _committed(store: Store, key: str, request: Request, image: Pillow.Image) -> Image:
    """The image's record; the first one's, when several processes made it at once."""
    prompt, seed = request
    blob = put_blob(store, encode_png(image, prompt, seed))
    size = (image.height, image.width)
    record = Image(name=f"{blob.sha256}.png", blob=blob, prompt=prompt, seed=seed, size=size)
    if put_record(store, key, record):
        return record
    return get_record(store, key, Image) or record


def _made_by_others(store: Store, key: str) -> Image:
    found = get_record(store, key, Image)
    if found is None:
        raise StorageError(
            f"{key} is not in {store.uri}, although it was made: do all machines use this store?"
        )
    return found


def sample_set(
    store: Store,
    prefix: str,
    drawing: SamplingSettings,
    requests: Sequence[Request],
    progress: Progress | None = None,
) -> SampleSet:
    """The requests' images as one set; only the missing ones are made (see `make_images`)."""
    images, _ = make_images(store, prefix, drawing, requests, progress)
    return image_set(store, f"{prefix}/sets", images, SampleSet)


def base_digest(config: Config) -> str:
    """SHA-256 over the base's files (see `base_model`)."""
    return base_model.base_digest(config.model)


def images_prefix(
    config: Config, weights: Weights | WeightMix | None, size: tuple[int, int] | None = None
) -> str:
    """Where the images of a model, a sampler and a size lie in the store.

    Whatever is drawn with `sampling_settings(config, store, weights, size)` belongs there: a run's samples,
    an evaluation's images and somebody's order find each other's.
    """
    return sample_origin(config, weights, size).prefix


def sample_origin(
    config: Config, weights: Weights | WeightMix | None, size: tuple[int, int] | None = None
) -> SampleOrigin:
    """What decides the images of a config's base and weights; `model.resolution` without a size."""
    side = config.model.resolution
    return SampleOrigin(
        family=config.model.family,
        base=base_digest(config),
        weights=tuple((share.weights.digest, share.strength) for share in mix_of(weights)),
        sampler=config.sampler,
        size=size or (side, side),
    )


def grid(config: Config, prompts: Sequence[str], seeds: int, stream: str) -> list[Request]:
    """Filled prompts x seeds, prompt by prompt; every prompt gets the same seeds."""
    return [
        (config.subject.fill(prompt), seed_for(config.seed, stream, index))
        for prompt in prompts
        for index in range(seeds)
    ]


def seeds_of(config: Config, template: str, count: int, seed_set: SeedSet) -> list[int]:
    """A prompt's seeds; fewer of them are the first ones."""
    stream = f"evaluate {seed_set} {template}"
    return [seed_for(config.evaluation.seed, stream, index) for index in range(count)]
