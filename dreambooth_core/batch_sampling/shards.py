"""Images of a sampling job: planned, split into shards, drawn and committed one by one.

    images/<key>/<request>.json         an image of one model, sampler and size (see `sampling`)
    jobs/<name>/<key>/images/<n>.json   the job's sidecar of the n-th image: everything that made it

Idempotent: images with a sidecar are skipped; shards may run anywhere, in any order, repeatedly; a
killed worker loses at most one batch.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import groupby

from dreambooth_core.batch_sampling.job import ImageSpec, SamplingJob, image_specs
from dreambooth_core.batch_sampling.models import ModelMix, model_mixes
from dreambooth_core.config import Config, Sampler, Storage
from dreambooth_core.console import Progress
from dreambooth_core.diffusion import noise_schedulers
from dreambooth_core.diffusion.base_model import base_digest, base_folder
from dreambooth_core.diffusion.families import load_family, only
from dreambooth_core.diffusion.parallel_sampling import image_pool
from dreambooth_core.diffusion.pipelines import (
    LoadedModel,
    LoadedPipeline,
    load_model,
    pipeline_for,
)
from dreambooth_core.diffusion.sampling import (
    Request,
    SamplingSettings,
    each_image,
    images_prefix,
    sample_origin,
)
from dreambooth_core.digests import digest_json
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage.blobs import get_record, put_record
from dreambooth_core.storage.records import Blob, ModelReference, Record, ShardResult
from dreambooth_core.storage.stores import Store


class AppliedWeights(Record):
    """Trained weights and the strength at which they are loaded into the base."""

    name: str
    """NAME/version; for a training that is not registered, the name in its config."""
    digest: str
    strength: float


class PlannedImage(Record):
    """An image of a job with everything that makes it."""

    index: int
    """Position in the job, from 0."""
    model: str
    """Name of the mix."""
    template: str
    prompt: str
    seed: int
    sampler: Sampler
    size: tuple[int, int]
    """Height and width in pixels."""
    family: str
    base: str
    """Digest of the base's files."""
    weights: tuple[AppliedWeights, ...]
    images_prefix: str
    """Prefix in the store of all images by this model, sampler and size."""
    image: Blob | None = None
    """None until it is drawn."""


@dataclass(frozen=True)
class JobPlan:
    """All images of a job and the models that draw them."""

    job: SamplingJob
    images: tuple[PlannedImage, ...]
    mixes: Mapping[str, ModelMix]
    """Name of a mix -> the mix."""

    @property
    def storage(self) -> Storage:
        """Store of the models, to which the job's images are written."""
        return next(iter(self.mixes.values())).config.storage

    @cached_property
    def prefix(self) -> str:
        """Prefix of the job's files in the store; it depends on the weights' digests."""
        images = [image.model_dump(mode="json", exclude={"model"}) for image in self.images]
        return f"jobs/{self.job.name}/{digest_json(images)[:32]}"

    def sidecar(self, image: PlannedImage) -> str:
        """Key of an image's sidecar."""
        return f"{self.prefix}/images/{image.index:06d}.json"


def plan_job(job: SamplingJob, models: Mapping[str, ModelReference], store: Store) -> JobPlan:
    """Every image of a job, before any is drawn; `models` resolves the names in it.

    Raises `ConfigError` for models that cannot be mixed, and for a size, a guidance or a noise
    scheduler that a model does not support.
    """
    mixes, specs = model_mixes(job, models, store), image_specs(job)
    _check_noise_schedulers(specs, mixes)
    images = tuple(
        _planned_image(index, spec, job, mixes[spec.model]) for index, spec in enumerate(specs)
    )
    return JobPlan(job, images, {mix.name: mix for mix in mixes.values()})


def shard_of(text: str) -> tuple[int, int]:
    """`2/8` -> (2, 8); raises `ConfigError`."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= count:
        raise ConfigError(f"--shard takes K/N with K from 1 to N, such as 2/8, not {text[:40]!r}")
    return number, count


def draw(
    store: Store,
    plan: JobPlan,
    shard: tuple[int, int] = (1, 1),
    progress: Progress | None = None,
) -> ShardResult:
    """Draw the missing images of shard (K, N): every N-th image from the K-th."""
    began, (number, count) = time.monotonic(), shard
    committed = set(store.keys(f"{plan.prefix}/images/"))
    images = plan.images[number - 1 :: count]
    missing = [image for image in images if plan.sidecar(image) not in committed]
    made = 0
    rate = ProgressRate(len(images), len(images) - len(missing), progress)
    for image, is_new in _drawn_images(store, plan, missing, rate):
        put_record(store, plan.sidecar(image), image)
        made += is_new
        rate.committed(is_new)
    seconds = time.monotonic() - began
    return ShardResult(
        made=made,
        found=len(images) - made,
        missing=len(plan.images) - len(set(store.keys(f"{plan.prefix}/images/"))),
        seconds=seconds,
        images_per_second=made / seconds if made else 0.0,
    )


def finished(store: Store, plan: JobPlan) -> tuple[PlannedImage, ...]:
    """The committed images of all shards, in the plan's order."""
    found = (get_record(store, plan.sidecar(image), PlannedImage) for image in plan.images)
    return tuple(image for image in found if image is not None)


@dataclass
class ProgressRate:
    """Progress of a shard, with images per second and the remaining time."""

    total: int
    found: int
    """Images that did not have to be drawn."""
    progress: Progress | None
    clock: Callable[[], float] = time.monotonic
    _committed: int = 0
    _drawn: int = 0
    """Images of finished forwards, committed or not."""
    _seconds: float = 0.0
    """Time until the last finished forward, loading included."""

    def __post_init__(self) -> None:
        self._began = self.clock()

    def forward(self, count: int) -> None:
        """Count images of a finished forward, of this or another process."""
        self._drawn += count
        self._seconds = self.clock() - self._began
        self._report()

    def committed(self, is_new: bool) -> None:
        """Count one committed image; `is_new` if it had to be drawn."""
        self._committed += is_new
        self.found += not is_new
        self._report()

    def _report(self) -> None:
        if self.progress is None:
            return
        done, label = self.found + max(self._drawn, self._committed), "images"
        if self._drawn and self._seconds > 0:
            rate = self._drawn / self._seconds
            label += f", {rate:.2f} images/s, {_duration((self.total - done) / rate)} left"
        self.progress(done, self.total, label)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _check_noise_schedulers(specs: Sequence[ImageSpec], mixes: Mapping[str, ModelMix]) -> None:
    named = {(spec.noise_scheduler, spec.model) for spec in specs if spec.noise_scheduler}
    for name, mix in sorted(named):
        config = mixes[mix].config.model
        family, folder = load_family(config.family), base_folder(config)
        own = family.load(folder, only(folder))["scheduler"]
        noise_schedulers.load_scheduler(name, own, family.flow)


def _planned_image(index: int, spec: ImageSpec, job: SamplingJob, mix: ModelMix) -> PlannedImage:
    config = _with_settings(spec, job, mix.config)
    family = load_family(config.model.family)
    side = config.model.resolution
    height, width = job.size or (side, side)
    if height % family.pixel_multiple or width % family.pixel_multiple:
        raise ConfigError(
            f"size {height} x {width} must be multiples of {family.pixel_multiple} "
            f"for {config.model.family}"
        )
    family.guidance(config.sampler)  # raises for a scale that the family does not support
    return PlannedImage(
        index=index,
        model=mix.name,
        template=spec.template,
        prompt=config.subject.fill(spec.template),
        seed=spec.seed,
        sampler=config.sampler,
        size=(height, width),
        family=config.model.family,
        base=base_digest(config.model),
        weights=tuple(
            AppliedWeights(name=model.name, digest=one.weights.digest, strength=one.strength)
            for model, one in zip(mix.models, mix.weights, strict=True)
        ),
        images_prefix=images_prefix(config, mix.weights, (height, width)),
    )


def _with_settings(spec: ImageSpec, job: SamplingJob, config: Config) -> Config:
    settings = {
        "guidance_scale": spec.guidance,
        "inference_steps": spec.steps,
        "noise_scheduler": spec.noise_scheduler,
        "negative_prompt": spec.negative_prompt,
        "batch_size": job.batch_size,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    return config.model_copy(update={"sampler": config.sampler.model_copy(update=given)})


def _drawn_images(
    store: Store, plan: JobPlan, missing: Sequence[PlannedImage], rate: ProgressRate
) -> Iterator[tuple[PlannedImage, bool]]:
    """Images with their blobs, and whether each had to be drawn; each model is loaded once."""
    by_mix = sorted(missing, key=lambda image: (image.model, image.images_prefix))
    for name, of_mix in groupby(by_mix, key=lambda image: image.model):
        mix = plan.mixes[name]
        model = cache(partial(load_model, mix.config, store, mix.weights))
        for prefix, group in groupby(of_mix, key=lambda image: image.images_prefix):
            images = list(group)
            update = {"sampler": images[0].sampler, "compute": plan.job.compute}
            config = mix.config.model_copy(update=update)
            origin = sample_origin(config, mix.weights, images[0].size)
            settings = SamplingSettings(
                partial(_load_pipeline, config, model),
                config.sampler,
                origin.size,
                origin,
                image_pool(config, mix.weights, origin.size, prefix),
            )
            yield from _group_images(store, prefix, settings, images, rate)


def _load_pipeline(config: Config, model: Callable[[], LoadedModel]) -> LoadedPipeline:
    return pipeline_for(config, model())


def _group_images(
    store: Store,
    prefix: str,
    settings: SamplingSettings,
    images: Sequence[PlannedImage],
    rate: ProgressRate,
) -> Iterator[tuple[PlannedImage, bool]]:
    """Images of one model, sampler and size."""
    reported = 0

    def progress(done: int, _: int, __: str) -> None:
        nonlocal reported
        rate.forward(done - reported)
        reported = done

    by_request: dict[Request, list[PlannedImage]] = {}
    for image in images:
        by_request.setdefault((image.prompt, image.seed), []).append(image)
    for request, drawn, made in each_image(store, prefix, settings, list(by_request), progress):
        for position, image in enumerate(by_request[request]):
            yield image.model_copy(update={"image": drawn.blob}), made and position == 0
