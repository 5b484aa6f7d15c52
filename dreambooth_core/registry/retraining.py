"""Retraining: newest inputs, and the check for a version trained from equal inputs."""

from dreambooth_core.config import Config
from dreambooth_core.config.flow_parameters import Retraining
from dreambooth_core.data.references import pinned
from dreambooth_core.diffusion import base_model
from dreambooth_core.registry.provenance import Provenance
from dreambooth_core.registry.register import alias_log_of
from dreambooth_core.storage.blobs import get_record
from dreambooth_core.storage.records import ImageSet
from dreambooth_core.storage.stores import Store
from dreambooth_core.tracking import mlflow as tracking
from dreambooth_core.tracking.mlflow import has_version
from dreambooth_core.training import stage


def with_newest_inputs(retraining: Retraining, store: Store) -> Config:
    """The config with the newest photos and base, and with automatic promotion off.

    Raises `ConfigError` for a missing dataset, `ModelError` when the Hub is not reachable.
    """
    config = pinned(retraining.config, store)
    gate = config.gate.model_copy(update={"auto_promote": False})
    model = config.model
    if retraining.branch is not None:
        model = base_model.newest(model, retraining.branch)
    return config.model_copy(update={"model": model, "gate": gate})


def registered_as(config: Config, store: Store, instance: ImageSet) -> str | None:
    """NAME/version that was trained from equal inputs; None without one.

    Inputs are compared by the training key, which ignores metrics, sample prompts and paths.
    """
    weights = stage.find(config, store, instance)
    log = weights and alias_log_of(config, store)
    if not weights or not log:
        return None
    client = tracking.open_client(config)
    for key in reversed(list(store.keys(f"{log.prefix}/versions/"))):
        provenance = get_record(store, key, Provenance)
        if provenance is None or provenance.weights_digest != weights.digest:
            continue
        if has_version(client, log.name, provenance.version):
            return f"{log.name}/{provenance.version}"
    return None
