"""`dreambooth train`: photos, class images and training, without evaluation, registry or Prefect."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreambooth_core import console
from dreambooth_core.config import Config
from dreambooth_core.data.ingest import ingest
from dreambooth_core.diffusion import families
from dreambooth_core.errors import ConfigError
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.records import Record, Weights
from dreambooth_core.storage.stores import open_store
from dreambooth_core.training import stage
from dreambooth_core.training.class_images import ensure_class_images

if TYPE_CHECKING:
    from dreambooth_core.training.memory_plan import MemoryPlan


class Digests(Record):
    """SHA-256 of inputs and weights."""

    instance_images: str
    class_images: str | None
    weights: str


class TrainingResult(Record):
    """Result of `dreambooth train`, printed by `--json`."""

    steps: int
    """Steps trained."""
    chosen_step: int | None
    """The step whose weights were exported."""
    loss: float
    """Mean instance loss of the last window of steps."""
    class_loss: float | None
    digests: Digests
    weights: str
    """URI of the weights' record."""
    reused: bool
    """Whether weights of the same inputs were found in the store."""
    resumed_from: int
    peak_memory_bytes: int
    steps_per_second: float
    class_images_used: int


def train_alone(config: Config) -> TrainingResult:
    """Train, or find the weights of the same inputs in the store; raises the errors of the stages."""
    families.check(families.load_family(config.model.family), config)
    with local_services(config):
        store = open_store(config.storage)
        instance = ingest(config, store)[0].images
        classes = None
        if not config.prior.generate_in_background:
            with console.progress_bar("priors") as progress:
                classes = ensure_class_images(config, store, instance, progress)[0]
        with console.progress_bar("train") as progress:
            weights, reused = stage.train(config, store, instance, progress)
        if config.prior.generate_in_background:
            classes = ensure_class_images(config, store, instance)[0]
    _, loss, class_loss = weights.losses[-1]
    return TrainingResult(
        steps=weights.steps,
        chosen_step=weights.chosen_step,
        loss=loss,
        class_loss=class_loss,
        digests=Digests(
            instance_images=instance.digest,
            class_images=None if classes is None else classes.digest,
            weights=weights.digest,
        ),
        weights=weights.uri,
        reused=reused,
        resumed_from=weights.resumed_from,
        peak_memory_bytes=weights.peak_memory_bytes,
        steps_per_second=weights.steps_per_second,
        class_images_used=weights.class_images_used,
    )


@dataclass(frozen=True)
class TrainingPlan:
    """Result of `dreambooth train --dry-run`: the config as it would be trained, and its memory plan."""

    config: Config
    memory: "MemoryPlan"


def plan(config: Config, gpu_gib: float | None = None) -> TrainingPlan:
    """The memory plan of the training; raises `ConfigError` if none fits with `memory.fit: auto`.

    `gpu_gib`: plan for a GPU of this memory with bfloat16, instead of this machine.
    """
    from dreambooth_core.diffusion import base_model
    from dreambooth_core.training import memory_plan

    if gpu_gib is not None:
        memory = config.memory.model_copy(update={"limit_gib": gpu_gib})
        config = config.model_copy(update={"memory": memory})
    gpu = None if gpu_gib is None else True
    settings, limit = stage.planned_to_fit(config, gpu), memory_plan.device_limit(config.memory)
    base = base_model.base_folder(settings.model)
    return TrainingPlan(settings, memory_plan.plan(settings, base, limit, gpu))


def weights_of(config: Config) -> Weights:
    """The stored weights of this config; raises `ConfigError` if it was not trained."""
    store = open_store(config.storage)
    found = stage.find(config, store, ingest(config, store)[0].images)
    if found is None:
        raise ConfigError(
            f"{config.name} was not trained with this config: run dreambooth train first"
        )
    return found
