"""Sampling of a model's images, by this process or by a pool of worker processes (see `engines`).

Workers store images under the same keys as this process does, with the same bytes.
"""

from collections.abc import Sequence
from functools import cache, lru_cache, partial

from dreambooth_core.config import Compute, Config
from dreambooth_core.config.compute import paths_here
from dreambooth_core.console import Progress
from dreambooth_core.diffusion import base_model
from dreambooth_core.diffusion.pipelines import WeightedAdapter, WeightMix, load_pipeline, mix_of
from dreambooth_core.diffusion.sampling import (
    ImagePool,
    Request,
    SamplingSettings,
    grid,
    images_prefix,
    make_images,
    sample_origin,
    sample_set,
)
from dreambooth_core.errors import ModelError
from dreambooth_core.runtime.engines import load_engine
from dreambooth_core.storage.records import Record, SampleSet, Weights
from dreambooth_core.storage.stage_cache import cached_stage
from dreambooth_core.storage.stores import Store, open_store

RANGES_PER_WORKER = 4
"""Small enough that a slow or killed worker delays the others little."""


class ImageRange(Record):
    """A piece of work of a worker: some requests for one model, sampler and size."""

    config: Config
    weights: tuple[WeightedAdapter, ...]
    size: tuple[int, int]
    """Height and width in pixels."""
    prefix: str
    """Key prefix of the images in the store."""
    requests: tuple[Request, ...]
    shares_work_folder: bool
    """Whether worker and caller have the same `paths.work`."""
    threads: int
    """Threads of the caller, and thus of the worker: on a CPU they change the last bit of sums."""


def image_pool(
    config: Config, weights: WeightMix, size: tuple[int, int], prefix: str
) -> ImagePool | None:
    """Worker processes of `compute` for these images; None when this process generates them."""
    if config.compute.alone:
        return None
    import torch

    plain = config.model_copy(
        update={"compute": Compute(), "model": base_model.absolute(config.model)}
    )
    template = ImageRange(
        config=plain,
        weights=weights,
        size=size,
        prefix=prefix,
        requests=(),
        shares_work_folder=load_engine(config.compute.engine).shares_work_folder,
        threads=torch.get_num_threads(),
    )
    return partial(_generate_in_pool, config.compute, template)


def ranges(requests: Sequence[Request], workers: int, batch: int) -> list[tuple[Request, ...]]:
    """The list in order, in ranges of whole batches except for the last one."""
    share = -(-len(requests) // (workers * RANGES_PER_WORKER))
    length = -(-share // batch) * batch
    return [tuple(requests[start : start + length]) for start in range(0, len(requests), length)]


def draw_range(text: str) -> None:
    """Generate the missing images of an `ImageRange`, given as JSON, in a worker process.

    The model stays loaded for the next range of the same model. Raises `ModelError` when this
    machine's base differs from the caller's.
    """
    import torch

    found = ImageRange.model_validate_json(text)
    torch.set_num_threads(found.threads)
    settings = _worker_settings(found.model_copy(update={"requests": ()}).model_dump_json())
    make_images(open_store(found.config.storage), found.prefix, settings, found.requests)


def _generate_in_pool(
    compute: Compute, template: ImageRange, requests: Sequence[Request], progress: Progress | None
) -> None:
    cut = ranges(requests, compute.workers, template.config.sampler.batch_size)
    pieces = [template.model_copy(update={"requests": one}).model_dump_json() for one in cut]
    finished = 0

    def done(number: int) -> None:
        nonlocal finished
        finished += len(cut[number])
        if progress is not None:
            progress(finished, len(requests), "images")

    load_engine(compute.engine).run(compute, draw_range, pieces, done)


@lru_cache(maxsize=1)
def _worker_settings(text: str) -> SamplingSettings:
    """Settings of an `ImageRange` without requests, for this machine's paths."""
    template = ImageRange.model_validate_json(text)
    config = template.config
    if not template.shares_work_folder:
        config = config.model_copy(update={"paths": paths_here(config.paths)})
    origin = sample_origin(config, template.weights, template.size)
    if origin.prefix != template.prefix:
        raise ModelError(
            f"the files of {config.model.base} on this machine differ from those of the process "
            "that requested the images: bring the same base to all machines"
        )
    load = cache(partial(load_pipeline, config, open_store(config.storage), template.weights))
    return SamplingSettings(load, config.sampler, template.size, origin)


def sampling_settings(
    config: Config,
    store: Store,
    weights: Weights | WeightMix | None,
    size: tuple[int, int] | None = None,
) -> SamplingSettings:
    """Settings for images of the base, or of the base with trained weights; the model loads once.

    `size` is height and width, `model.resolution` squared by default.
    """
    origin = sample_origin(config, weights, size)
    load = cache(partial(load_pipeline, config, store, weights))
    pool = image_pool(config, mix_of(weights), origin.size, origin.prefix)
    return SamplingSettings(load, config.sampler, origin.size, origin, pool)


def sample(
    config: Config, store: Store, weights: Weights, progress: Progress | None = None
) -> tuple[SampleSet, bool]:
    """The sample images of a run, and whether the stage's result was stored already."""
    requests = grid(config, config.sample.prompts, config.sample.seeds, "sample")
    prefix = images_prefix(config, weights)

    def make(_: str) -> SampleSet:
        settings = sampling_settings(config, store, weights)
        return sample_set(store, prefix, settings, requests, progress)

    return cached_stage(store, "samples", {"images": prefix, "requests": requests}, SampleSet, make)
