"""What a run is going to do: from what, what of it is there already, and what the rest may cost."""

from typing import TYPE_CHECKING

from dreambooth_core import bases, fit
from dreambooth_core.config import Config
from dreambooth_core.costs import remembered
from dreambooth_core.priors import class_images
from dreambooth_core.records import ImageSet, Record
from dreambooth_core.storage import Store

if TYPE_CHECKING:
    from dreambooth_core.versions.origins import Ancestry


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
    priors_seconds: float | None
    """For the class images that are missing, as fast as the champion's were made; None if unknown."""
    training_seconds: float | None
    """What training cost when it was done, or what the champion's speed lets expect; None if unknown."""
    evaluation_seconds: float | None
    """As fast as the champion was measured; None if unknown."""


def forecast(config: Config, store: Store, instance: ImageSet) -> Forecast:
    """Raises `ModelError` for a base that is not there."""
    planned = class_images(config, instance)
    weights, rules = fit.find(config, store, instance), config.evaluation
    champion = _champion(config, store)
    if weights is not None:
        cost = remembered(store, weights)
        seconds = cost.seconds if cost else None
    else:
        speed = champion.weights.steps_per_second if champion else 0.0
        seconds = config.train.steps / speed if speed else None
    there = sum(store.exists(image.key) for image in planned)
    measured = len(rules.kinds) * rules.seeds + rules.class_images
    classes, scores = (champion.classes, champion.scores) if champion else (None, None)
    shown = scores.samples.count + scores.class_samples.count if scores else 0
    return Forecast(
        photos=instance.count,
        instance=instance.digest,
        base=bases.base_digest(config.model),
        class_images=len(planned),
        class_images_there=there,
        trained=weights.digest if weights else None,
        evaluated_images=measured,
        priors_seconds=_expected(
            store, classes, classes.count if classes else 0, len(planned) - there
        ),
        training_seconds=seconds,
        evaluation_seconds=_expected(store, scores, shown, measured),
    )


def _champion(config: Config, store: Store) -> "Ancestry | None":
    """What the model in service was made of; None when there is none."""
    from dreambooth_core.registry import book_of, followed
    from dreambooth_core.versions.origins import ancestry_of, read_origin

    book = book_of(config, store)
    version = followed(config, book).champion if book else None
    return ancestry_of(store, read_origin(book, version)) if book and version else None


def _expected(store: Store, made: Record | None, count: int, wanted: int) -> float | None:
    """Seconds for so many images, at the pace of `made` with its own; none for none."""
    if wanted == 0:
        return 0.0
    cost = remembered(store, made) if made is not None and count else None
    return cost.seconds / count * wanted if cost else None
