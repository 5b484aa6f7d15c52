"""Lists of images, cut into ranges that other processes draw (see `engines`).

Whoever wants images finds them in the store afterwards, as if it had drawn them itself.
"""

from collections.abc import Sequence
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING

from dreambooth_core.config import Compute, Config
from dreambooth_core.config.compute import paths_here
from dreambooth_core.console import Progress
from dreambooth_core.diffusion import base_model
from dreambooth_core.diffusion.pipelines import WeightedAdapter, WeightMix, load_pipeline, mix_of
from dreambooth_core.diffusion.sampling import (
    ImagePool,
    SamplingSettings,
    grid,
    images_prefix,
    sample_origin,
    sample_set,
)
from dreambooth_core.errors import ModelError
from dreambooth_core.runtime.engines import load_engine
from dreambooth_core.storage.records import Record, SampleSet, Weights
from dreambooth_core.storage.stage_cache import cached_stage
from dreambooth_core.storage.stores import Store, open_store

if TYPE_CHECKING:
    from dreambooth_core.diffusion.sampling import Request, SamplingSettings

RANGES_PER_WORKER = 4
"""So that one that is slow, or has died, holds nobody up for long."""


class ImageRange(Record):
    """Some of the images that are wanted of one model, sampler and size."""

    config: Config
    blend: tuple[WeightedAdapter, ...]
    size: tuple[int, int]
    """Height and width in pixels."""
    prefix: str
    """Where they belong in the store."""
    requests: tuple[tuple[str, int], ...]
    """Prompts and seeds."""
    shares_work_folder: bool
    """Whether who draws shares the work folder of who wants them."""
    threads: int
    """Those of the process that wants them; on a processor they decide the last bit of a sum."""


def image_pool(
    config: Config, blend: WeightMix, size: tuple[int, int], prefix: str
) -> ImagePool | None:
    """Who draws for this config; None when its own process does."""
    if config.compute.alone:
        return None
    import torch

    plain = config.model_copy(
        update={"compute": Compute(), "model": base_model.absolute(config.model)}
    )
    whole = ImageRange(
        config=plain,
        blend=blend,
        size=size,
        prefix=prefix,
        requests=(),
        shares_work_folder=load_engine(config.compute.engine).shares_work_folder,
        threads=torch.get_num_threads(),
    )
    return partial(_draw_together, config.compute, whole)


def ranges(requests: Sequence["Request"], workers: int, batch: int) -> list[tuple["Request", ...]]:
    """The list in order, cut so that no forward is only partly filled, but perhaps the last one."""
    share = -(-len(requests) // (workers * RANGES_PER_WORKER))
    length = -(-share // batch) * batch
    return [tuple(requests[start : start + length]) for start in range(0, len(requests), length)]


def draw_range(text: str) -> None:
    """Make what is missing of a `ImageRange`; the model stays loaded for the next one of the same.

    Raises `ModelError` when the base here is not the one that the images are wanted of.
    """
    import torch

    from dreambooth_core.diffusion.sampling import make_images

    found = ImageRange.model_validate_json(text)
    torch.set_num_threads(found.threads)
    drawing = _drawing(found.model_copy(update={"requests": ()}).model_dump_json())
    make_images(open_store(found.config.storage), found.prefix, drawing, found.requests)


def _draw_together(
    compute: Compute, whole: ImageRange, requests: Sequence["Request"], progress: Progress | None
) -> None:
    cut = ranges(requests, compute.workers, whole.config.sampler.batch_size)
    pieces = [whole.model_copy(update={"requests": one}).model_dump_json() for one in cut]
    reached = 0

    def done(number: int) -> None:
        nonlocal reached
        reached += len(cut[number])
        if progress is not None:
            progress(reached, len(requests), "images")

    load_engine(compute.engine).run(compute, draw_range, pieces, done)


@lru_cache(maxsize=1)
def _drawing(text: str) -> "SamplingSettings":

    whole = ImageRange.model_validate_json(text)
    paths = whole.config.paths if whole.shares_work_folder else paths_here(whole.config.paths)
    config = whole.config.model_copy(update={"paths": paths})
    drawing = sampling_settings(config, open_store(config.storage), whole.blend, whole.size)
    if drawing.origin is None or drawing.origin.prefix != whole.prefix:
        raise ModelError(
            f"the files of {config.model.base} on this machine are not those that images are "
            "wanted of: bring the same base to all machines"
        )
    return drawing


def sampling_settings(
    config: Config,
    store: Store,
    weights: Weights | WeightMix | None,
    size: tuple[int, int] | None = None,
) -> SamplingSettings:
    """How the base, or the base with trained weights, draws; loaded once at most.

    Squares of `model.resolution` when no size is given.
    """
    by = sample_origin(config, weights, size)
    load = cache(partial(load_pipeline, config, store, weights))
    crew = image_pool(config, mix_of(weights), by.size, by.prefix)
    return SamplingSettings(load, config.sampler, by.size, by, crew)


def sample(
    config: Config, store: Store, weights: Weights, progress: Progress | None = None
) -> tuple[SampleSet, bool]:
    """The batch of images that a run ends with, and whether it was there already."""
    requests = grid(config, config.sample.prompts, config.sample.seeds, "sample")
    prefix = images_prefix(config, weights)

    def make(_: str) -> SampleSet:
        return sample_set(
            store, prefix, sampling_settings(config, store, weights), requests, progress
        )

    return cached_stage(store, "samples", {"images": prefix, "requests": requests}, SampleSet, make)
