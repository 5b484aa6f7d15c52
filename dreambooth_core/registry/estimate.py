"""Cost estimate of a run: its inputs, what can be reused, and the expected time of the rest."""

from typing import TYPE_CHECKING, NamedTuple

from dreambooth_core.config import Config
from dreambooth_core.diffusion import base_model
from dreambooth_core.storage.costs import stored_cost
from dreambooth_core.storage.records import CostEstimate, ImageSet, Record
from dreambooth_core.storage.stores import Store
from dreambooth_core.training import stage
from dreambooth_core.training.class_images import class_images

if TYPE_CHECKING:
    from dreambooth_core.registry.provenance import RunInputs


def estimate_cost(config: Config, store: Store, instance: ImageSet) -> CostEstimate:
    """Estimate from the speeds of the champion's run; raises `ModelError` for a missing base."""
    from dreambooth_core.registry.promotion import champion_inputs

    planned, rules = class_images(config, instance), config.evaluation
    stored = sum(store.exists(image.key) for image in planned)
    evaluated = len(rules.kinds) * rules.seeds + rules.class_images
    weights = stage.find(config, store, instance)
    speed = _speed_of(store, champion_inputs(config, store))
    training = _total(config.train.steps, speed.step)
    if weights is not None:
        cost = stored_cost(store, weights)
        training = cost.seconds if cost else None
    return CostEstimate(
        photos=instance.count,
        instance=instance.digest,
        base=base_model.base_digest(config.model),
        class_images=len(planned),
        stored_class_images=stored,
        trained=weights.digest if weights else None,
        evaluated_images=evaluated,
        priors_seconds=_total(len(planned) - stored, speed.class_image),
        training_seconds=training,
        evaluation_seconds=_total(evaluated, speed.evaluated_image),
    )


class _Speed(NamedTuple):
    """Seconds per unit of the champion's run; None if unknown."""

    class_image: float | None = None
    step: float | None = None
    evaluated_image: float | None = None


def _speed_of(store: Store, champion: "RunInputs | None") -> _Speed:
    if champion is None:
        return _Speed()
    classes, scores = champion.classes, champion.scores
    steps_per_second = champion.weights.steps_per_second
    evaluated = scores.samples.count + scores.class_samples.count
    return _Speed(
        class_image=_per_unit(store, classes, classes.count) if classes else None,
        step=1 / steps_per_second if steps_per_second else None,
        evaluated_image=_per_unit(store, scores, evaluated),
    )


def _per_unit(store: Store, made: Record, count: int) -> float | None:
    cost = stored_cost(store, made)
    return cost.seconds / count if cost and count else None


def _total(count: int, seconds: float | None) -> float | None:
    """Seconds of `count` units; 0 for none, also where the speed is unknown."""
    return 0.0 if count == 0 else seconds and count * seconds
