"""Hyperparameter sweep: trials of a grid, their scores, the Pareto front and the best trial.

Trials are compared on the development seeds. The best one goes through the gate like any candidate,
which uses the confirmation seeds.
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
    """The grid's points in order, or `sweep.trials` of them, sampled with the config's seed.

    Raises `ConfigError` for unknown keys and for incompatible values.
    """
    grid = list(product(*sweep.grid.values()))
    if sweep.trials is not None and sweep.trials < len(grid):
        drawn = permutation(sweep.config.seed, "sweep", 0, len(grid))[: sweep.trials]
        grid = [grid[index] for index in sorted(drawn)]
    return tuple(_trial(sweep, dict(zip(sweep.grid, values, strict=True))) for values in grid)


def trial_score(
    trial: SweepTrial, weights: Weights, scores: Scores, rows: Sequence[ImageScores]
) -> TrialScore:
    """Score of a trial by the first primary metric that the photos or the images have.

    Images in which the subject was not found count 0, so that all trials are comparable. Raises
    `ConfigError` if no primary metric or no prompt fidelity was measured.
    """
    known = {*scores.metrics, *scores.reference}
    primary = next((name for name in trial.config.gate.primary if name in known), None)
    if primary is None or "prompt_fidelity" not in scores.metrics:
        raise ConfigError(
            "a sweep compares a metric of gate.primary and prompt_fidelity, and one of them was not "
            "measured: set gate.primary to metrics that evaluation measures"
        )
    return TrialScore(
        settings=trial.settings,
        subject_fidelity=_mean_with_zeros(primary, rows),
        prompt_fidelity=scores.metrics["prompt_fidelity"],
        base_prompt_fidelity=scores.base_metrics["prompt_fidelity"],
        seconds=weights.seconds,
    )


def pareto_front(points: Sequence[TrialScore]) -> tuple[int, ...]:
    """Indices of the points that no other point dominates (Pareto front)."""
    values = [(one.subject_fidelity, one.prompt_fidelity, -one.seconds) for one in points]
    return tuple(
        index
        for index, own in enumerate(values)
        if not any(
            other != own and all(a >= b for a, b in zip(other, own, strict=True))
            for other in values
        )
    )


def best_trial(points: Sequence[TrialScore], rules: Validation) -> int:
    """Index of the best trial, by the rule of `best_step`."""
    base = ValidationResult(step=0, stable_loss=0, prompt_fidelity=points[0].base_prompt_fidelity)
    trials = [
        ValidationResult(
            step=number,
            stable_loss=0,
            subject_fidelity=one.subject_fidelity,
            prompt_fidelity=one.prompt_fidelity,
        )
        for number, one in enumerate(points, 1)
    ]
    best = best_step([base, *trials], rules)
    if best is None:
        raise ConfigError("a sweep without trials has no best trial: extend sweep.grid")
    return best.step - 1


def _mean_with_zeros(metric: str, rows: Sequence[ImageScores]) -> float:
    """Mean of a metric over prompts, with 0 for images without a value."""
    skipped = {"class", *catalogue()[metric].skips}
    filled = [
        row.model_copy(update={"scores": {metric: row.scores.get(metric, 0.0)}})
        for row in rows
        if row.kind not in skipped
    ]
    return estimate(metric, filled).value


def _trial(sweep: Sweep, settings: Mapping[str, Any]) -> SweepTrial:
    document = sweep.config.model_dump(mode="json", exclude_unset=True)
    for dotted, value in settings.items():
        *parents, last = dotted.split(".")
        section = document
        for name in parents:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise ConfigError(f"sweep.grid: {dotted} names no option: {name} is a value")
        section[last] = value
    try:
        return SweepTrial(settings=dict(settings), config=Config.model_validate(document))
    except ValidationError as error:
        keys = ", ".join(settings)
        raise ConfigError(f"sweep.grid of {keys}: {wrong_fields(error, Config)}") from error
