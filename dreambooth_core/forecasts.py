"""What a run is going to do: from what, what of it is there already, and what the rest may cost."""

from dreambooth_core import bases, fit
from dreambooth_core.config import Config
from dreambooth_core.costs import remembered
from dreambooth_core.priors import class_images
from dreambooth_core.records import ImageSet, Record
from dreambooth_core.storage import Store


class Forecast(Record):
    """Before the first image is made."""

    photos: int
    instance: str
    """Digest of the instance images."""
    base: str
    """Digest of the base."""
    class_images: int
    class_images_there: int
    trained: str | None
    """Digest of the weights that the same inputs gave before."""
    evaluated_images: int
    """Of the tuned model and of the base, each, in the first round."""
    training_seconds: float | None
    """What training cost when it was done, or what the champion's speed lets expect; None if unknown."""


def forecast(config: Config, store: Store, instance: ImageSet) -> Forecast:
    """Raises `ModelError` for a base that is not there."""
    from dreambooth_core.versions.promotion import champion_of

    planned = class_images(config, instance)
    weights, rules = fit.find(config, store, instance), config.evaluation
    if weights is not None:
        cost = remembered(store, weights)
        seconds = cost.seconds if cost else None
    else:
        champion = champion_of(config, store)
        speed = champion.weights.steps_per_second if champion else 0.0
        seconds = config.train.steps / speed if speed else None
    return Forecast(
        photos=instance.count,
        instance=instance.digest,
        base=bases.base_digest(config.model),
        class_images=len(planned),
        class_images_there=sum(store.exists(image.key) for image in planned),
        trained=weights.digest if weights else None,
        evaluated_images=len(rules.kinds) * rules.seeds + rules.class_images,
        training_seconds=seconds,
    )
