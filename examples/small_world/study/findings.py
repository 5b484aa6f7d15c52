"""Statistics of the trials' results: means with confidence intervals, and differences between arms.

The sample is the subjects: the seeds of a subject are averaged first, since subjects differ in
difficulty. Differences are paired by subject and seed.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from dreambooth_core.metrics import catalogue, range_of
from dreambooth_core.metrics.statistics import interval
from dreambooth_core.storage.records import Estimate
from examples.small_world.study import trials
from examples.small_world.study.arms import Arm, Question, Trial
from examples.small_world.study.trials import Result

LEVEL = 0.95
TrialKey = tuple[str, int]
"""Subject and seed."""
Bounds = tuple[float, float]
"""Lowest and highest possible mean."""
Answer = Literal["better", "worse", "no difference shown"]


class ArmResults(NamedTuple):
    """The finished trials of one arm of a question."""

    arm: Arm
    results: dict[TrialKey, Result]
    planned: int
    """Number of planned trials."""


def gather(question: Question, folder: Path) -> tuple[ArmResults, ...]:
    """Results of the question's arms, in their order.

    A trial with another evaluation plan than most trials of its subject counts as missing.
    """
    read = {
        (arm.name, subject, seed): trials.read(folder, Trial(arm, subject, seed))
        for arm in question.arms
        for subject in question.subjects
        for seed in question.seeds
    }
    plans = _plans(result for result in read.values() if result is not None)
    found = []
    for arm in question.arms:
        results = {
            (subject, seed): result
            for (name, subject, seed), result in read.items()
            if name == arm.name and result is not None and result.plan == plans[subject]
        }
        found.append(ArmResults(arm, results, len(question.subjects) * len(question.seeds)))
    return tuple(found)


def metrics_of(found: Iterable[ArmResults]) -> list[str]:
    """Metrics that every result has, sorted by name, those of prompts first."""
    every, known = _measured(found), catalogue()
    names = every[0].intersection(*every) & known.keys() if every else ()
    return sorted(names, key=lambda name: (known[name].of != "prompts", name))


def left_out(found: Iterable[ArmResults]) -> list[str]:
    """Metrics that only some of the results have."""
    every = _measured(found)
    return sorted(every[0].union(*every) - every[0].intersection(*every)) if every else []


def estimate(values: Mapping[TrialKey, float], bounds: Bounds) -> Estimate:
    """Mean over subjects of the means over seeds, with its interval, clipped to the bounds.

    Raises `ValueError` without values.
    """
    if not values:
        raise ValueError("no trial to take a mean over")
    by_subject = defaultdict(list)
    for (subject, _), value in sorted(values.items()):
        by_subject[subject].append(value)
    means = np.array([np.mean(seeds) for seeds in by_subject.values()])
    low, high = interval(means, LEVEL)
    if low is not None and high is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate(value=float(means.mean()), low=low, high=high)


def of_arm(found: ArmResults, metric: str) -> Estimate | None:
    """Mean of the arm; None if all its trials are missing."""
    values = {key: result.metrics[metric] for key, result in found.results.items()}
    return estimate(values, range_of(metric)) if values else None


def of_base(found: ArmResults, metric: str) -> Estimate | None:
    """Mean of the base on the arm's subjects; None if the metric has no value for the base."""
    values = {
        key: result.base_metrics[metric]
        for key, result in found.results.items()
        if metric in result.base_metrics
    }
    return estimate(values, range_of(metric)) if values else None


def difference(ours: ArmResults, theirs: ArmResults, metric: str) -> Estimate | None:
    """Ours minus theirs, over the trials that both have; None without such trials."""
    gains = {
        key: ours.results[key].metrics[metric] - theirs.results[key].metrics[metric]
        for key in both(ours, theirs)
    }
    low, high = range_of(metric)
    return estimate(gains, (low - high, high - low)) if gains else None


def wins(ours: ArmResults, theirs: ArmResults, metric: str) -> int:
    """Number of common trials in which ours is better; ties do not count."""
    sign = 1 if catalogue()[metric].higher_is_better else -1
    return sum(
        sign * ours.results[key].metrics[metric] > sign * theirs.results[key].metrics[metric]
        for key in both(ours, theirs)
    )


def both(ours: ArmResults, theirs: ArmResults) -> list[TrialKey]:
    """Subjects and seeds of the trials that both arms have."""
    return sorted(ours.results.keys() & theirs.results.keys())


def answer(gain: Estimate, higher_is_better: bool) -> Answer:
    """Whether the first side of a difference is better; shown only if the interval excludes 0."""
    if gain.low is None or gain.high is None or gain.low <= 0 <= gain.high:
        return "no difference shown"
    return "better" if (gain.low > 0) == higher_is_better else "worse"


def against(ours: ArmResults, peer: ArmResults) -> dict[str, dict[str, float | bool | None]]:
    """Metric -> both means over the common trials, and their difference with its interval."""
    shared = both(ours, peer)
    rows: dict[str, dict[str, float | bool | None]] = {}
    for metric in metrics_of((ours, peer)):
        gain = difference(ours, peer, metric)
        if gain is None:
            continue
        sides = (
            estimate(
                {key: side.results[key].metrics[metric] for key in shared}, range_of(metric)
            ).value
            for side in (ours, peer)
        )
        rows[metric] = {
            **dict(zip(("ours", "peer"), sides, strict=True)),
            "difference": gain.value,
            "low": gain.low,
            "high": gain.high,
            "higher_is_better": catalogue()[metric].higher_is_better,
        }
    return rows


def _measured(found: Iterable[ArmResults]) -> list[set[str]]:
    return [set(result.metrics) for each in found for result in each.results.values()]


def _plans(results: Iterable[Result]) -> dict[str, str]:
    """Subject -> digest of the evaluation plan of most of its trials."""
    counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        counted[result.subject][result.plan] += 1
    return {subject: plans.most_common(1)[0][0] for subject, plans in counted.items()}
