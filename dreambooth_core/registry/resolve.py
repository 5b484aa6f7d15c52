"""Model names resolved to registered versions, or to the trainings of configs."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from dreambooth_core.config import Config, load_config
from dreambooth_core.config.base import NAME
from dreambooth_core.errors import ConfigError
from dreambooth_core.registry.register import find_version
from dreambooth_core.storage.records import BASE, ModelReference


def find_model(name: str, config: Config | None, work: Path) -> ModelReference:
    """The model called NAME, NAME@alias, NAME/version or CONFIG.yaml.

    `config` and `work` locate MLflow as in `find_version`. Raises `ConfigError` for an unknown model.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        trained = load_config(Path(name))
        return ModelReference(name=trained.name, config=trained)
    found = find_version(config, work, name)
    return ModelReference(
        name=f"{found.name}/{found.version}",
        config=found.config,
        version=found.version,
        weights_record=found.weights_record,
        instance_uri=found.instance_uri,
    )


def find_models(
    names: Iterable[str], config: Config | None, work: Path
) -> dict[str, ModelReference]:
    """Name -> its model, for the models of one sampling job.

    Raises `ConfigError` for an unknown model, and for models in different stores.
    """
    models = _with_unique_names({name: find_model(name, config, work) for name in names})
    stores = {(m.config.storage.uri, m.config.storage.endpoint): m.name for m in models.values()}
    if len(stores) > 1:
        raise ConfigError(
            f"{' and '.join(stores.values())} are in different stores: write a job for each store"
        )
    return models


def find_runs(
    names: Iterable[str], config: Config | None, work: Path
) -> dict[str, ModelReference | None]:
    """Name -> its model, for a search; None for `base` and for a name that may be a sampling job's.

    Raises `ConfigError` for a name that is neither.
    """
    found: dict[str, ModelReference | None] = {}
    for name in names:
        try:
            found[name] = None if name == BASE else find_model(name, config, work)
        except ConfigError:
            if not re.fullmatch(NAME, name):
                raise
            found[name] = None
    return found


def _with_unique_names(models: dict[str, ModelReference]) -> dict[str, ModelReference]:
    """Images are stored by model name: configs that share one also get their file's path."""
    times = Counter(model.name for model in models.values() if model.version is None)
    return {
        name: model.model_copy(update={"name": f"{model.name} ({name})"})
        if model.version is None and times[model.name] > 1
        else model
        for name, model in models.items()
    }
