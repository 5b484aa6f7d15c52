"""Out of trained models: images, orders of many images, or files for other programs, into a folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core import console, exports
from dreambooth_core.blobs import fetch_blob, get_record
from dreambooth_core.config import Config, Sample, load_config
from dreambooth_core.drawing import darkroom
from dreambooth_core.drawing.darkroom import Tally
from dreambooth_core.drawing.fulfilling import Published, announced, planned, publish
from dreambooth_core.drawing.orders import Order
from dreambooth_core.drawing.palettes import find_members
from dreambooth_core.errors import ConfigError
from dreambooth_core.records import Record, Weights
from dreambooth_core.registry import find_version
from dreambooth_core.sampling import fetch_weights, sample
from dreambooth_core.services import local_services
from dreambooth_core.storage import open_store
from dreambooth_core.training_alone import weights_of


@dataclass(frozen=True)
class Wish:
    """What is asked of the model."""

    prompts: tuple[str, ...]
    """Templates; `{subject}`, `{identifier}` and `{class}` are those of the training."""
    seeds: int
    """Images per prompt; the same seeds as a run's with the same config."""
    out: Path


def from_registry(config: Config | None, work: Path, model: str, wish: Wish) -> Iterator[Path]:
    """Write `<name>-v<version>-<index>-<digest>.png` into `wish.out` and give each path.

    By the image's digest what was asked for before stays beside it.
    Prompt, seed and digest stand in each image's metadata. Raises `ConfigError` for a model or a
    template that is unknown.
    """
    found = find_version(config, work, model)
    trained = found.config.model_copy(
        update={"sample": Sample(prompts=wish.prompts, seeds=wish.seeds)}
    )
    for template in wish.prompts:
        _check(trained, template)
    with local_services(trained), console.progress_bar("sample") as progress:
        store = open_store(trained.storage)
        weights = get_record(store, found.weights_record, Weights)
        if weights is None:
            raise ConfigError(f"the weights of {model} are no longer in {store.uri}: train again")
        made, _ = sample(trained, store, weights, progress)
        stem = f"{found.name}-v{found.version}"
        for image in made.images:
            path = wish.out / f"{stem}-{image.name[:-4]}-{image.blob.sha256[:8]}.png"
            fetch_blob(store, image.blob, path)
            yield path


class Fulfilled(Record):
    """How an order, or a worker's shard of it, went."""

    tally: Tally
    published: Published | None
    """None while images of other shards are missing."""


def from_order(
    config: Config | None, work: Path, order: Order, shard: tuple[int, int], out: Path
) -> Fulfilled:
    """Draw what is missing of a shard of the order; publish the order once nothing is missing.

    `config` says where MLflow is, as in `find_version`. Raises `ConfigError` before anything is
    drawn for models or settings that do not go together.
    """
    members = find_members(order, config, work)
    home = next(iter(members.values())).config
    with local_services(home), console.progress_bar("sample") as progress:
        store = open_store(home.storage)
        plan = planned(order, members, store)
        console.say(announced(plan, shard))
        tally = darkroom.draw(store, plan, shard, progress)
        return Fulfilled(tally=tally, published=publish(order, plan, members, store, out))


def exported(
    model: str, form: str, out: Path, work: Path, overrides: tuple[str, ...]
) -> list[Path]:
    """Write a registered model, or what training a config has left, in a format of `exports/`.

    Raises `ConfigError` for a model that is unknown or was not trained, and for a format that
    cannot hold it.
    """
    is_config = Path(model).suffix in (".yaml", ".yml")
    found = None if is_config else find_version(None, work, model)
    config = found.config if found else load_config(Path(model), overrides)
    with local_services(config):
        store = open_store(config.storage)
        weights = get_record(store, found.weights_record, Weights) if found else weights_of(config)
        if weights is None:
            raise ConfigError(f"the weights of {model} are no longer in {store.uri}: train again")
        folder = fetch_weights(config.paths, store, weights)
        return exports.export(form, exports.source_of(config, weights, folder), out)


def _check(config: Config, template: str) -> None:
    try:
        config.subject.fill(template)
    except ValueError as error:
        raise ConfigError(str(error)) from error
