"""Several trainings of one subject, and which of them is worth being judged.

They are measured with the development seeds only; the one that is chosen meets the others like any
candidate: trained is it already, and the gate draws it with seeds that nothing was chosen by.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from pydantic import ValidationError

from dreambooth_core.config import Config, Validation
from dreambooth_core.config.flow_parameters import Sweep
from dreambooth_core.config.refusals import wrong_fields
from dreambooth_core.errors import ConfigError
from dreambooth_core.metrics import catalogue
from dreambooth_core.metrics.statistics import estimate
from dreambooth_core.randomness import permutation
from dreambooth_core.storage.records import (
    ImageScores,
    Record,
    Scores,
    TrialScore,
    ValidationResult,
    Weights,
)
from dreambooth_core.training.best_step import best_step


class SweepTrial(Record):
    """One point of the grid."""

    settings: dict[str, Any]
    """Key of the config, such as `train.steps` -> value."""
    config: Config


def trials_of(sweep: Sweep) -> tuple[SweepTrial, ...]:
    """The grid's points in its order, or as many of them as are wanted, drawn by the config's seed.

    Raises `ConfigError` for a key that a config has not, and for values that do not go together.
    """
    grid = list(product(*sweep.grid.values()))
    if sweep.trials is not None and sweep.trials < len(grid):
        drawn = permutation(sweep.config.seed, "sweep", 0, len(grid))[: sweep.trials]
        grid = [grid[place] for place in sorted(drawn)]
    return tuple(_trial(sweep, dict(zip(sweep.grid, values, strict=True))) for values in grid)


def point_of(
    trial: SweepTrial, weights: Weights, scores: Scores, rows: Sequence[ImageScores]
) -> TrialScore:
    """By the metric that all trials have, also one in whose images the subject was lost: the photos'.

    Raises `ConfigError` when none of the gate's primary metrics was measured.
    """
    known = {*scores.metrics, *scores.reference}
    primary = next((name for name in trial.config.gate.primary if name in known), None)
    if primary is None or "prompt_fidelity" not in scores.metrics:
        raise ConfigError(
            "a sweep compares gate.primary and prompt_fidelity: neither may be missing"
        )
    return TrialScore(
        settings=trial.settings,
        subject_fidelity=_with_lost_ones(primary, rows),
        prompt_fidelity=scores.metrics["prompt_fidelity"],
        base_prompt_fidelity=scores.base_metrics["prompt_fidelity"],
        seconds=weights.seconds,
    )


def front(points: Sequence[TrialScore]) -> tuple[int, ...]:
    """Places of the points than which none is better in something and worse in nothing (Pareto)."""
    worth = [(one.subject_fidelity, one.prompt_fidelity, -one.seconds) for one in points]
    return tuple(
        place
        for place, ours in enumerate(worth)
        if not any(
            theirs != ours and all(a >= b for a, b in zip(theirs, ours, strict=True))
            for theirs in worth
        )
    )


def winner(points: Sequence[TrialScore], rules: Validation) -> int:
    """Place of the point to be judged, by the rule that also chooses among a training's steps."""
    base = ValidationResult(step=0, stable_loss=0, prompt_fidelity=points[0].base_prompt_fidelity)
    looks = [
        ValidationResult(
            step=place,
            stable_loss=0,
            subject_fidelity=one.subject_fidelity,
            prompt_fidelity=one.prompt_fidelity,
        )
        for place, one in enumerate(points, 1)
    ]
    best = best_step([base, *looks], rules)
    if best is None:
        raise ConfigError("a sweep without a trial has no winner")
    return best.step - 1


def _with_lost_ones(metric: str, rows: Sequence[ImageScores]) -> float:
    """Its mean over prompts, with 0 for images of which it knows nothing."""
    skipped = {"class", *catalogue()[metric].skips}
    whole = [
        row.model_copy(update={"scores": {metric: row.scores.get(metric, 0.0)}})
        for row in rows
        if row.kind not in skipped
    ]
    return estimate(metric, whole).value


def _trial(sweep: Sweep, settings: Mapping[str, Any]) -> SweepTrial:
    document = sweep.config.model_dump(mode="json", exclude_unset=True)
    for dotted, value in settings.items():
        *parents, last = dotted.split(".")
        place = document
        for name in parents:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ConfigError(f"sweep.grid: {dotted} names no option: {name} is a value")
        place[last] = value
    try:
        return SweepTrial(settings=dict(settings), config=Config.model_validate(document))
    except ValidationError as error:
        keys = ", ".join(settings)
        raise ConfigError(f"sweep.grid of {keys}: {wrong_fields(error, Config)}") from error
