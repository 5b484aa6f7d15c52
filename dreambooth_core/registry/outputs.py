"""Outputs of trained models in a folder: images, and exports for other programs."""

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
    """Prompts and seeds to draw."""

    prompts: tuple[str, ...]
    """Templates; `{subject}`, `{identifier}` and `{class}` are filled from the model's config."""
    seeds: int
    """Images per prompt, with the seeds of a run with the same config."""
    out: Path


def sample_model(
    config: Config | None, work: Path, model: str, request: SampleRequest
) -> Iterator[Path]:
    """Write `<name>-v<version>-<index>-<digest>.png` to `request.out` and yield each path.

    The image's digest in its name keeps earlier images. PNG metadata has prompt, seed and weights'
    digest. Raises `ConfigError` for an unknown model or template variable.
    """
    found = find_version(config, work, model)
    trained = found.config.model_copy(
        update={"sample": Sample(prompts=request.prompts, seeds=request.seeds)}
    )
    for template in request.prompts:
        _check_template(trained, template)
    with local_services(trained), console.progress_bar("sample") as progress:
        store = open_store(trained.storage)
        weights = get_record(store, found.weights_record, Weights)
        if weights is None:
            raise ConfigError(f"the weights of {model} are no longer in {store.uri}: train again")
        made, _ = sample(trained, store, weights, progress)
        stem = f"{found.name}-v{found.version}"
        for image in made.images:
            path = request.out / f"{stem}-{image.name[:-4]}-{image.blob.sha256[:8]}.png"
            fetch_blob(store, image.blob, path)
            yield path


def export_model(
    model: str, form: str, out: Path, work: Path, overrides: tuple[str, ...]
) -> list[Path]:
    """Write a registered model, or the trained model of a config, in a format of `exports/`.

    Raises `ConfigError` for an unknown or untrained model, and for a format that does not support it.
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


def _check_template(config: Config, template: str) -> None:
    try:
        config.subject.fill(template)
    except ValueError as error:
        raise ConfigError(str(error)) from error
