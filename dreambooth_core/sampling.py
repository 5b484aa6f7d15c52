"""Images out of a model: one seed per image, full batches always, lossless, made once."""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from dreambooth_core import bases, config
from dreambooth_core.blobs import (
    digest_json,
    fetch_blob,
    get_record,
    image_set,
    put_blob,
    put_record,
)
from dreambooth_core.config import Config, Sampler
from dreambooth_core.families import channels_last, load_family
from dreambooth_core.randomness import seed_for
from dreambooth_core.records import Image, Progress, SampleSet, Weights
from dreambooth_core.stages import once, stage_key
from dreambooth_core.storage import Store

Request = tuple[str, int]
"""A prompt and a seed."""


@dataclass(frozen=True)
class Painter:
    """A loaded model, ready to draw."""

    pipeline: Any
    guidance: Mapping[str, Any]
    """The family's arguments for guidance; its negative prompt is repeated for every image."""
    spell: Callable[[str], str] = str
    """How a prompt is written for this model, whose identifier may have tokens of its own."""


@dataclass(frozen=True)
class Drawing:
    """How images are drawn, and by whom."""

    load: Callable[[], Painter]
    """Called when, and only when, an image is missing; it may be called again and again."""
    sampler: Sampler
    size: tuple[int, int]
    """Height and width in pixels."""


def generate(
    painter: Painter, drawing: Drawing, requests: Sequence[Request], progress: Progress | None
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
            prompt=[painter.spell(prompt) for prompt, _ in padded],
            generator=[torch.Generator().manual_seed(seed) for _, seed in padded],
            num_inference_steps=drawing.sampler.inference_steps,
            height=height,
            width=width,
            **guidance,
        ).images
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
    drawing: Drawing,
    requests: Sequence[Request],
    progress: Progress | None = None,
) -> tuple[tuple[Image, ...], int]:
    """The images of `requests`, named by their places, and how many had to be made.

    `prefix` stands for model, sampler and size. An image is the record `image_key(prefix, request)`,
    created once, after its blob: any process can make any image at any time, and every list of
    requests finds those that another one has had made.
    """
    keys = {request: image_key(prefix, request) for request in requests}
    found = {request: get_record(store, key, Image) for request, key in keys.items()}
    missing = [request for request, record in found.items() if record is None]
    images = generate(drawing.load(), drawing, missing, progress) if missing else iter(())
    for request, image in zip(missing, images, strict=True):
        record = _recorded(store, image, request)
        first = put_record(store, keys[request], record)
        found[request] = record if first else get_record(store, keys[request], Image)
    in_order = (found[request] for request in requests)
    named = [
        image.model_copy(update={"name": f"{place:06d}.png"})
        for place, image in enumerate(in_order)
        if image is not None
    ]
    return tuple(named), len(missing)


def image_key(prefix: str, request: Request) -> str:
    """Where an image's record lies below a prefix: by what was asked for, whatever the list."""
    return f"{prefix}/{digest_json(request)}.json"


def _recorded(store: Store, image: Pillow.Image, request: Request) -> Image:
    prompt, seed = request
    blob = put_blob(store, encode_png(image, prompt, seed))
    size = (image.height, image.width)
    return Image(name=f"{blob.sha256}.png", blob=blob, prompt=prompt, seed=seed, size=size)


def sample_set(
    store: Store,
    prefix: str,
    drawing: Drawing,
    requests: Sequence[Request],
    progress: Progress | None = None,
) -> SampleSet:
    """The requests' images as one set; only the missing ones are made (see `make_images`)."""
    images, _ = make_images(store, prefix, drawing, requests, progress)
    return image_set(store, f"{prefix}/sets", images, SampleSet)


def base_digest(config: Config) -> str:
    """SHA-256 over the base's files (see `bases`)."""
    return bases.base_digest(config.model)


def images_prefix(
    config: Config, weights: Weights | None, size: tuple[int, int] | None = None
) -> str:
    """Where the images of a model, a sampler and a size lie in the store.

    Whatever is drawn with `drawing_of(config, store, weights, size)` belongs there: a run's samples,
    an evaluation's images and somebody's order find each other's.
    """
    side = config.model.resolution
    inputs = {
        "family": config.model.family,
        "base": base_digest(config),
        "weights": weights.digest if weights else None,
        "sampler": config.sampler,
        "size": size or (side, side),
    }
    return f"images/{stage_key('images', inputs)}"


def drawing_of(
    config: Config, store: Store, weights: Weights | None, size: tuple[int, int] | None = None
) -> Drawing:
    """How the base, or the base with trained weights, draws; loaded once at most.

    Squares of `model.resolution` when no size is given.
    """
    side = config.model.resolution
    load = cache(partial(load_painter, config, store, weights))
    return Drawing(load, config.sampler, size or (side, side))


def load_painter(config: Config, store: Store, weights: Weights | None) -> Painter:
    """The base's pipeline with trained weights put in, or untouched for None, on the best device.

    Adapters are merged into the weights. Raises `ModelError`, or `StorageError` for weights that
    are not what their digests say.
    """
    folder = None if weights is None else fetch_weights(config.paths, store, weights)
    return painter_of(config, bases.base_folder(config.model), folder)


def painter_of(config: Config, base: Path, folder: Path | None) -> Painter:
    """The model of a base and, maybe, of a folder with trained weights, on the best device."""
    import torch

    from dreambooth_core import adapters, inversion

    family = load_family(config.model.family)
    whole = () if folder is None else [path for path in folder.iterdir() if path.is_dir()]
    parts = family.load(base, {path.name: path for path in whole})
    tokens: inversion.Tokens = {}
    if folder is not None and not whole:
        parts = adapters.apply(family, parts, folder)
        tokens = inversion.exported_tokens(folder)
    pipeline = family.pipeline(parts)
    for name in (family.denoiser, family.autoencoder):
        channels_last(getattr(pipeline, name))
    if torch.cuda.is_available():
        # a flow's transformers overflow in half precision, as their authors say
        pipeline = pipeline.to("cuda", torch.bfloat16 if family.flow else torch.float16)
    return Painter(pipeline, family.guidance(config.sampler), partial(inversion.spell, tokens))


def fetch_weights(paths: config.Paths, store: Store, weights: Weights) -> Path:
    """The local folder with the weights' files, each verified: `<work>/models/<digest>`."""
    folder = paths.work / "models" / weights.digest
    for name, blob in weights.files.items():
        fetch_blob(store, blob, folder / name)
    return folder


def grid(config: Config, prompts: Sequence[str], seeds: int, stream: str) -> list[Request]:
    """Filled prompts x seeds, prompt by prompt; every prompt gets the same seeds."""
    return [
        (config.subject.fill(prompt), seed_for(config.seed, stream, index))
        for prompt in prompts
        for index in range(seeds)
    ]


def sample(
    config: Config, store: Store, weights: Weights, progress: Progress | None = None
) -> tuple[SampleSet, bool]:
    """The batch of images that a run ends with, and whether it was there already."""
    requests = grid(config, config.sample.prompts, config.sample.seeds, "sample")
    prefix = images_prefix(config, weights)

    def make(_: str) -> SampleSet:
        return sample_set(store, prefix, drawing_of(config, store, weights), requests, progress)

    return once(store, "samples", {"images": prefix, "requests": requests}, SampleSet, make)
