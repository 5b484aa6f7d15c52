"""Whether there is anything new to learn from, for runs that a clock or new photos start."""

from dreambooth_core import bases, fit, tracking
from dreambooth_core.blobs import get_record
from dreambooth_core.config import Config
from dreambooth_core.forms import Retraining
from dreambooth_core.lookups import has_version
from dreambooth_core.photos.references import pinned
from dreambooth_core.records import ImageSet
from dreambooth_core.registry import book_of
from dreambooth_core.storage import Store
from dreambooth_core.versions.origins import Origin


def renewed(retraining: Retraining, store: Store) -> Config:
    """The config with the newest photos and base, which only proposes its version for promotion.

    Raises `ConfigError` for a dataset that is not there, `ModelError` when the Hub does not answer.
    """
    config = pinned(retraining.config, store)
    gate = config.gate.model_copy(update={"automatic": False})
    model = config.model
    if retraining.branch is not None:
        model = bases.newest(model, retraining.branch)
    return config.model_copy(update={"model": model, "gate": gate})


def registered_as(config: Config, store: Store, instance: ImageSet) -> str | None:
    """NAME/version whose training had all the same inputs; None when there is none.

    Asked by the training's key: other metrics, prompts or places are nothing new to learn.
    """
    weights = fit.find(config, store, instance)
    book = weights and book_of(config, store)
    if not weights or not book:
        return None
    client = tracking.open_client(config)
    for key in reversed(list(store.keys(f"{book.place}/versions/"))):
        origin = get_record(store, key, Origin)
        if origin is None or origin.weights_digest != weights.digest:
            continue
        if has_version(client, book.name, origin.version):
            return f"{book.name}/{origin.version}"
    return None
