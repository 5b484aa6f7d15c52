"""Whether there is anything new to learn from, for runs that a clock or new photos start."""

from dreambooth_core.config import Config
from dreambooth_core.config.flow_parameters import Retraining
from dreambooth_core.data.references import pinned
from dreambooth_core.diffusion import base_model
from dreambooth_core.registry.provenance import Provenance
from dreambooth_core.registry.register import book_of
from dreambooth_core.storage.blobs import get_record
from dreambooth_core.storage.records import ImageSet
from dreambooth_core.storage.stores import Store
from dreambooth_core.tracking import mlflow as tracking
from dreambooth_core.tracking.mlflow import has_version
from dreambooth_core.training import stage


def renewed(retraining: Retraining, store: Store) -> Config:
    """The config with the newest photos and base, which only proposes its version for promotion.

    Raises `ConfigError` for a dataset that is not there, `ModelError` when the Hub does not answer.
    """
    config = pinned(retraining.config, store)
    gate = config.gate.model_copy(update={"auto_promote": False})
    model = config.model
    if retraining.branch is not None:
        model = base_model.newest(model, retraining.branch)
    return config.model_copy(update={"model": model, "gate": gate})


def registered_as(config: Config, store: Store, instance: ImageSet) -> str | None:
    """NAME/version whose training had all the same inputs; None when there is none.

    Asked by the training's key: other metrics, prompts or places are nothing new to learn.
    """
    weights = stage.find(config, store, instance)
    book = weights and book_of(config, store)
    if not weights or not book:
        return None
    client = tracking.open_client(config)
    for key in reversed(list(store.keys(f"{book.place}/versions/"))):
        origin = get_record(store, key, Provenance)
        if origin is None or origin.weights_digest != weights.digest:
            continue
        if has_version(client, book.name, origin.version):
            return f"{book.name}/{origin.version}"
    return None
