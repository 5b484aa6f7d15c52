"""An order's images: planned, shared among workers, drawn and committed one by one.

images/<key>/<request>.json            the image of a model, sampler and size (see `sampling`)
orders/<name>/<key>/pictures/<n>.json  the order's sidecar of it: everything that made it

Whoever finds a picture's sidecar passes it by; so any worker can take any shard, in any order and
again, and whoever is killed loses the pictures of one forward.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from itertools import groupby

from dreambooth_core.batch_sampling.job import ImageSpec, SamplingJob, image_specs
from dreambooth_core.batch_sampling.models import ModelMix
from dreambooth_core.config import Compute, Config, Sampler
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
from dreambooth_core.storage.records import Blob, Record
from dreambooth_core.storage.stores import Store


class AppliedWeights(Record):
    """Trained weights, as they were put into the base."""

    name: str
    """NAME/version, or the name in the config of a training that was not registered."""
    digest: str
    strength: float


class PlannedImage(Record):
    """Everything that made an image of an order."""

    index: int
    """Its place in the order."""
    model: str
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
    images: str
    """Prefix in the store of all images by this model, sampler and size."""
    image: Blob | None = None
    """None while it is only planned."""


class ShardResult(Record):
    """What a worker did for its shard of an order."""

    made: int
    """Images that had to be drawn."""
    found: int
    """Images that were there."""
    missing: int
    """Images of the whole order that other shards have yet to draw."""
    seconds: float
    images_per_second: float
    """Of those that were drawn, loading included; 0 when none were."""


@dataclass(frozen=True)
class JobPlan:
    """An order whose models are known."""

    name: str
    pictures: tuple[PlannedImage, ...]
    mixtures: Mapping[str, ModelMix]
    """Name of a mixture -> itself."""
    compute: Compute = field(default_factory=Compute)
    """Who draws it."""

    @cached_property
    def prefix(self) -> str:
        """Where the order's own files lie in the store; another champion is another place."""
        plain = [picture.model_dump(mode="json", exclude={"model"}) for picture in self.pictures]
        return f"orders/{self.name}/{digest_json(plain)[:32]}"

    def sidecar(self, picture: PlannedImage) -> str:
        """Key of a picture's sidecar."""
        return f"{self.prefix}/pictures/{picture.index:06d}.json"


def plan(order: SamplingJob, mixtures: Mapping[str, ModelMix]) -> JobPlan:
    """Every picture of an order, before anything is drawn.

    Raises `ConfigError` for a size, a guidance or a noise scheduler that a model does not take.
    """
    wanted = image_specs(order)
    _check_noise_schedulers(wanted, mixtures)
    pictures = tuple(
        _planned(index, wish, order, mixtures[wish.model]) for index, wish in enumerate(wanted)
    )
    named = {mixture.name: mixture for mixture in mixtures.values()}
    return JobPlan(order.name, pictures, named, order.compute)


def shard_of(text: str) -> tuple[int, int]:
    """`2/8` -> (2, 8); raises `ConfigError`."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= count:
        raise ConfigError(f"--shard takes K/N with K from 1 to N, such as 2/8, not {text[:40]!r}")
    return number, count


def draw(
    store: Store,
    planned: JobPlan,
    shard: tuple[int, int] = (1, 1),
    progress: Progress | None = None,
) -> ShardResult:
    """Draw what is missing of every N-th picture from the K-th on, for a shard (K, N)."""
    began, (number, count) = time.monotonic(), shard
    there = set(store.keys(f"{planned.prefix}/pictures/"))
    mine = planned.pictures[number - 1 :: count]
    wanted = [picture for picture in mine if planned.sidecar(picture) not in there]
    made = 0
    pace = ProgressRate(len(mine), len(mine) - len(wanted), progress)
    for picture, drawn in _drawn(store, planned, wanted, pace):
        put_record(store, planned.sidecar(picture), picture)
        made += drawn
        pace.committed(drawn)
    seconds = time.monotonic() - began
    return ShardResult(
        made=made,
        found=len(mine) - made,
        missing=len(planned.pictures) - len(set(store.keys(f"{planned.prefix}/pictures/"))),
        seconds=seconds,
        images_per_second=made / seconds if made else 0.0,
    )


def finished(store: Store, planned: JobPlan) -> tuple[PlannedImage, ...]:
    """The pictures that are there, of all shards, in the order's order."""
    found = (get_record(store, planned.sidecar(item), PlannedImage) for item in planned.pictures)
    return tuple(picture for picture in found if picture is not None)


@dataclass
class ProgressRate:
    """Tells how far a shard is, how fast it draws, and how long the rest will take."""

    total: int
    found: int
    """Pictures that were there."""
    progress: Progress | None
    clock: Callable[[], float] = time.monotonic
    _committed: int = 0
    _drawn: int = 0
    """By forwards that are over, whose pictures need not be committed yet."""
    _seconds: float = 0.0
    """That these took, loading included."""

    def __post_init__(self) -> None:
        self._began = self.clock()

    def forward(self, count: int) -> None:
        """So many images more have come out of forwards, here or in other processes."""
        self._drawn += count
        self._seconds = self.clock() - self._began
        self._tell()

    def committed(self, drawn: bool) -> None:
        """A picture more is committed, which was drawn or found."""
        self._committed += drawn
        self.found += not drawn
        self._tell()

    def _tell(self) -> None:
        if self.progress is None:
            return
        done, words = self.found + max(self._drawn, self._committed), "images"
        if self._drawn and self._seconds > 0:
            rate = self._drawn / self._seconds
            words += f", {rate:.2f} images/s, {_spoken((self.total - done) / rate)} left"
        self.progress(done, self.total, words)


def _spoken(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _check_noise_schedulers(wanted: Sequence[ImageSpec], mixtures: Mapping[str, ModelMix]) -> None:
    asked = {(wish.noise_scheduler, wish.model) for wish in wanted if wish.noise_scheduler}
    for name, model in sorted(asked):
        config = mixtures[model].config.model
        family, folder = load_family(config.family), base_folder(config)
        own = family.load(folder, only(folder))["scheduler"]
        noise_schedulers.load_scheduler(name, own, family.flow)


def _planned(index: int, wish: ImageSpec, order: SamplingJob, mixture: ModelMix) -> PlannedImage:
    config = _settings(wish, order, mixture.config)
    family = load_family(config.model.family)
    side = config.model.resolution
    height, width = order.size or (side, side)
    if height % family.pixel_multiple or width % family.pixel_multiple:
        raise ConfigError(
            f"size {height} x {width} must be multiples of {family.pixel_multiple} "
            f"for {config.model.family}"
        )
    family.guidance(config.sampler)
    return PlannedImage(
        index=index,
        model=mixture.name,
        template=wish.template,
        prompt=config.subject.fill(wish.template),
        seed=wish.seed,
        sampler=config.sampler,
        size=(height, width),
        family=config.model.family,
        base=base_digest(config.model),
        weights=tuple(
            AppliedWeights(name=name, digest=share.weights.digest, strength=share.strength)
            for name, share in zip(mixture.members, mixture.blend, strict=True)
        ),
        images=images_prefix(config, mixture.blend, (height, width)),
    )


def _settings(wish: ImageSpec, order: SamplingJob, config: Config) -> Config:
    asked = {
        "guidance_scale": wish.guidance,
        "inference_steps": wish.steps,
        "noise_scheduler": wish.noise_scheduler,
        "negative_prompt": wish.negative_prompt,
        "batch_size": order.batch_size,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    return config.model_copy(update={"sampler": config.sampler.model_copy(update=given)})


def _drawn(
    store: Store, planned: JobPlan, wanted: Sequence[PlannedImage], pace: ProgressRate
) -> Iterator[tuple[PlannedImage, bool]]:
    """Pictures with their images, and whether these had to be drawn; each model is loaded once."""
    for name, of_model in groupby(sorted(wanted, key=_model), key=lambda picture: picture.model):
        mixture = planned.mixtures[name]
        model = cache(partial(load_model, mixture.config, store, mixture.blend))
        for prefix, alike in groupby(of_model, key=lambda picture: picture.images):
            pictures = list(alike)
            asked = {"sampler": pictures[0].sampler, "compute": planned.compute}
            config = mixture.config.model_copy(update=asked)
            load = partial(_painter, config, model)
            by = sample_origin(config, mixture.blend, pictures[0].size)
            crew = image_pool(config, mixture.blend, by.size, prefix)
            drawing = SamplingSettings(load, config.sampler, by.size, by, crew)
            yield from _alike(store, prefix, drawing, pictures, pace)


def _painter(config: Config, model: Callable[[], LoadedModel]) -> LoadedPipeline:
    return pipeline_for(config, model())


def _alike(
    store: Store,
    prefix: str,
    drawing: SamplingSettings,
    pictures: Sequence[PlannedImage],
    pace: ProgressRate,
) -> Iterator[tuple[PlannedImage, bool]]:
    """Pictures by one model, sampler and size."""
    reached = 0

    def told(done: int, _: int, __: str) -> None:
        nonlocal reached
        pace.forward(done - reached)
        reached = done

    asked: dict[Request, list[PlannedImage]] = {}
    for picture in pictures:
        asked.setdefault((picture.prompt, picture.seed), []).append(picture)
    for request, image, made in each_image(store, prefix, drawing, list(asked), told):
        for place, picture in enumerate(asked[request]):
            yield picture.model_copy(update={"image": image.blob}), made and place == 0


def _model(picture: PlannedImage) -> tuple[str, str]:
    return picture.model, picture.images
