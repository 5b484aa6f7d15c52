"""Out of trained models: images, orders of many images, or files for other programs, into a folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core import console
from dreambooth_core.config import Config, Sample, load_config
from dreambooth_core.diffusion import exports
from dreambooth_core.diffusion.parallel_sampling import sample
from dreambooth_core.diffusion.pipelines import fetch_weights
from dreambooth_core.errors import ConfigError
from dreambooth_core.registry.register import find_version
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.blobs import fetch_blob, get_record
from dreambooth_core.storage.records import Weights
from dreambooth_core.storage.stores import open_store
from dreambooth_core.training.standalone import weights_of


@dataclass(frozen=True)
class SampleRequest:
    """What is asked of the model."""

    prompts: tuple[str, ...]
    """Templates; `{subject}`, `{identifier}` and `{class}` are those of the training."""
    seeds: int
    """Images per prompt; the same seeds as a run's with the same config."""
    out: Path


def sample_model(
    config: Config | None, work: Path, model: str, wish: SampleRequest
) -> Iterator[Path]:
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


def export_model(
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
