"""What a run is going to do: from what, what of it is there already, and what the rest may cost."""

from typing import TYPE_CHECKING, NamedTuple

from dreambooth_core.config import Config
from dreambooth_core.diffusion import base_model
from dreambooth_core.storage.costs import stored_cost
from dreambooth_core.storage.records import ImageSet, Record
from dreambooth_core.storage.stores import Store
from dreambooth_core.training import stage
from dreambooth_core.training.class_images import class_images

if TYPE_CHECKING:
    from dreambooth_core.registry.provenance import RunInputs


class CostEstimate(Record):
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


def estimate_cost(config: Config, store: Store, instance: ImageSet) -> CostEstimate:
    """Raises `ModelError` for a base that is not there."""
    from dreambooth_core.registry.promotion import champion_inputs

    planned, rules = class_images(config, instance), config.evaluation
    there = sum(store.exists(image.key) for image in planned)
    measured = len(rules.kinds) * rules.seeds + rules.class_images
    weights = stage.find(config, store, instance)
    pace = _pace_of(store, champion_inputs(config, store))
    training = _times(config.train.steps, pace.step)
    if weights is not None:
        cost = stored_cost(store, weights)
        training = cost.seconds if cost else None
    return CostEstimate(
        photos=instance.count,
        instance=instance.digest,
        base=base_model.base_digest(config.model),
        class_images=len(planned),
        class_images_there=there,
        trained=weights.digest if weights else None,
        evaluated_images=measured,
        priors_seconds=_times(len(planned) - there, pace.class_image),
        training_seconds=training,
        evaluation_seconds=_times(measured, pace.measured_image),
    )


class _Pace(NamedTuple):
    """Seconds that the champion took for one of each; None where nobody knows."""

    class_image: float | None = None
    step: float | None = None
    measured_image: float | None = None


def _pace_of(store: Store, champion: "RunInputs | None") -> _Pace:
    if champion is None:
        return _Pace()
    classes, scores, speed = champion.classes, champion.scores, champion.weights.steps_per_second
    measured = scores.samples.count + scores.class_samples.count
    return _Pace(
        class_image=_each(store, classes, classes.count) if classes else None,
        step=1 / speed if speed else None,
        measured_image=_each(store, scores, measured),
    )


def _each(store: Store, made: Record, count: int) -> float | None:
    cost = stored_cost(store, made)
    return cost.seconds / count if cost and count else None


def _times(count: int, each: float | None) -> float | None:
    """Nothing takes no time, whatever one of it would."""
    return 0.0 if count == 0 else each and count * each
