"""Images out of a model: one seed per image, full batches always, lossless, made once."""

import hashlib
import io
import types
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from dreambooth_core import bases, config
from dreambooth_core.blobs import fetch_blob, get_record, image_set, put_blob, put_record
from dreambooth_core.config import Config, Sampler
from dreambooth_core.families import load_family
from dreambooth_core.randomness import seed_for
from dreambooth_core.records import Image, Progress, SampleSet, Weights
from dreambooth_core.stages import once
from dreambooth_core.storage import Store

Request = tuple[str, int]
"""A prompt and a seed."""


def generate(
    pipeline: Any,
    requests: Sequence[Request],
    sampler: Sampler,
    resolution: int,
    progress: Progress | None = None,
) -> Iterator[Pillow.Image]:
    """One image per request, in order.

    Each image has a CPU generator of its own, and the last batch is filled up with repeats: neither
    its neighbours nor the number of images decide a bit of it. Both halves of classifier-free
    guidance (Ho & Salimans 2022, arXiv:2207.12598) go through one forward.
    """
    import torch

    size = sampler.batch_size
    for start in range(0, len(requests), size):
        batch = list(requests[start : start + size])
        padded = batch + [batch[-1]] * (size - len(batch))
        made = pipeline(
            prompt=[prompt for prompt, _ in padded],
            negative_prompt=[sampler.negative_prompt] * size,
            generator=[torch.Generator().manual_seed(seed) for _, seed in padded],
            num_inference_steps=sampler.inference_steps,
            guidance_scale=sampler.guidance_scale,
            height=resolution,
            width=resolution,
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
    pipeline: Any,
    requests: Sequence[Request],
    sampler: Sampler,
    resolution: int,
    progress: Progress | None = None,
) -> tuple[tuple[Image, ...], int]:
    """The images of `requests`, and how many had to be made; the others were there.

    Image i is the record `<prefix>/<i as 6 digits>.json`, created once, after its blob: any process
    can make any index at any time. `pipeline` may be a function without arguments that loads one;
    it is called only when an image is missing.
    """
    keys = [f"{prefix}/{index:06d}.json" for index in range(len(requests))]
    stored = set(store.keys(f"{prefix}/"))
    missing = [index for index, key in enumerate(keys) if key not in stored]
    if missing and isinstance(pipeline, types.FunctionType | types.MethodType | partial):
        pipeline = pipeline()
    wanted = [requests[index] for index in missing]
    images = generate(pipeline, wanted, sampler, resolution, progress)
    for index, image in zip(missing, images, strict=True):
        prompt, seed = requests[index]
        blob = put_blob(store, encode_png(image, prompt, seed))
        record = Image(name=f"{index:06d}.png", blob=blob, prompt=prompt, seed=seed)
        put_record(store, keys[index], record)
    records = [get_record(store, key, Image) for key in keys]
    return tuple(record for record in records if record is not None), len(missing)


def sample_set(
    store: Store,
    prefix: str,
    pipeline: Any,
    requests: Sequence[Request],
    sampler: Sampler,
    resolution: int,
    progress: Progress | None = None,
) -> SampleSet:
    """The requests' images as one set; only the missing ones are made (see `make_images`)."""
    images, _ = make_images(store, prefix, pipeline, requests, sampler, resolution, progress)
    return image_set(store, f"{prefix}/sets", images, SampleSet)


def base_digest(config: Config) -> str:
    """SHA-256 over the base's files (see `bases`)."""
    return bases.base_digest(config.model)


def load_pipeline(config: Config, store: Store, weights: Weights | None) -> Any:
    """The base's pipeline with trained weights put in, or untouched for None, on the best device.

    Adapters are merged into the weights. Raises `ModelError`, or `StorageError` for weights that
    are not what their digests say.
    """
    import torch

    family = load_family(config.model.family)
    base = bases.base_folder(config.model)
    folder = None if weights is None else fetch_weights(config.paths, store, weights)
    if folder is None or weights is None or weights.method == "lora":
        parts = family.load(base, {})
    else:
        names = {name.split("/")[0] for name in weights.files}
        parts = family.load(base, {name: folder / name for name in names})
    pipeline = family.pipeline(parts)
    if folder is not None and weights is not None and weights.method == "lora":
        pipeline.load_lora_weights(folder, weight_name=next(iter(weights.files)))
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    for name in (family.denoiser, family.autoencoder):
        getattr(pipeline, name).to(memory_format=torch.channels_last)
    return pipeline.to("cuda", torch.float16) if torch.cuda.is_available() else pipeline


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
    inputs = {
        "base": base_digest(config),
        "weights": weights.digest,
        "requests": requests,
        "sampler": config.sampler,
        "resolution": config.model.resolution,
    }

    def make(key: str) -> SampleSet:
        load = partial(load_pipeline, config, store, weights)
        place = f"samples/{key}"
        resolution = config.model.resolution
        return sample_set(store, place, load, requests, config.sampler, resolution, progress)

    return once(store, "samples", inputs, SampleSet, make)


def loader(config: Config, store: Store, weights: Weights | None) -> Callable[[], Any]:
    """A function that loads the pipeline when, and only when, it is called."""
    return partial(load_pipeline, config, store, weights)
