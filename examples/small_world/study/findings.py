"""What the trials' files say: means with intervals, and arms held against one another.

The subjects are the sample: the seeds of a subject are averaged first, since a subject is harder or
easier than others whatever the seed. Differences are between trials of the same subject and seed.
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
Place = tuple[str, int]
"""Subject and seed."""
Bounds = tuple[float, float]
"""What no mean can leave."""
Answer = Literal["better", "worse", "no difference shown"]


class Found(NamedTuple):
    """What there is of one arm of a question."""

    arm: Arm
    results: dict[Place, Result]
    planned: int
    """Trials that there would be if none were missing."""


def gather(question: Question, folder: Path) -> tuple[Found, ...]:
    """The question's arms, in their order.

    A trial that was measured by another plan than most of its subject's counts as missing: it has
    to be measured again.
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
        found.append(Found(arm, results, len(question.subjects) * len(question.seeds)))
    return tuple(found)


def metrics_of(found: Iterable[Found]) -> list[str]:
    """Metrics that every result has: those of prompts first, by name."""
    every, known = _measured(found), catalogue()
    names = every[0].intersection(*every) & known.keys() if every else ()
    return sorted(names, key=lambda name: (known[name].of != "prompts", name))


def left_out(found: Iterable[Found]) -> list[str]:
    """Metrics that some results have and others lack."""
    every = _measured(found)
    return sorted(every[0].union(*every) - every[0].intersection(*every)) if every else []


def estimate(values: Mapping[Place, float], bounds: Bounds) -> Estimate:
    """Mean over subjects of the means over seeds, with its interval, which ends at the bounds.

    Raises `ValueError` for no values.
    """
    if not values:
        raise ValueError("there is no trial to take a mean over")
    by_subject = defaultdict(list)
    for (subject, _), value in sorted(values.items()):
        by_subject[subject].append(value)
    means = np.array([np.mean(seeds) for seeds in by_subject.values()])
    low, high = interval(means, LEVEL)
    if low is not None and high is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate(value=float(means.mean()), low=low, high=high)


def of_arm(found: Found, metric: str) -> Estimate | None:
    """The arm's own value; None when all its trials are missing."""
    values = {place: result.metrics[metric] for place, result in found.results.items()}
    return estimate(values, range_of(metric)) if values else None


def of_base(found: Found, metric: str) -> Estimate | None:
    """The untouched base's value for the arm's subjects; None where it has none."""
    values = {
        place: result.base_metrics[metric]
        for place, result in found.results.items()
        if metric in result.base_metrics
    }
    return estimate(values, range_of(metric)) if values else None


def difference(ours: Found, theirs: Found, metric: str) -> Estimate | None:
    """Ours minus theirs over the trials that both have; None without any."""
    gains = {
        place: ours.results[place].metrics[metric] - theirs.results[place].metrics[metric]
        for place in both(ours, theirs)
    }
    low, high = range_of(metric)
    return estimate(gains, (low - high, high - low)) if gains else None


def wins(ours: Found, theirs: Found, metric: str) -> int:
    """In how many of the trials that both have ours is the better one; a tie is not."""
    sign = 1 if catalogue()[metric].higher_is_better else -1
    return sum(
        sign * ours.results[place].metrics[metric] > sign * theirs.results[place].metrics[metric]
        for place in both(ours, theirs)
    )


def both(ours: Found, theirs: Found) -> list[Place]:
    """Subjects and seeds that neither arm lacks."""
    return sorted(ours.results.keys() & theirs.results.keys())


def answer(gain: Estimate, higher_is_better: bool) -> Answer:
    """What a difference says of its first side: nothing, unless its interval leaves 0 out."""
    if gain.low is None or gain.high is None or gain.low <= 0 <= gain.high:
        return "no difference shown"
    return "better" if (gain.low > 0) == higher_is_better else "worse"


def against(ours: Found, peer: Found) -> dict[str, dict[str, float | bool | None]]:
    """Metric -> both sides' means over the trials that both have, and the interval of the difference."""
    shared = both(ours, peer)
    rows: dict[str, dict[str, float | bool | None]] = {}
    for metric in metrics_of((ours, peer)):
        gain = difference(ours, peer, metric)
        if gain is None:
            continue
        sides = (
            estimate(
                {place: side.results[place].metrics[metric] for place in shared}, range_of(metric)
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


def _measured(found: Iterable[Found]) -> list[set[str]]:
    return [set(result.metrics) for each in found for result in each.results.values()]


def _plans(results: Iterable[Result]) -> dict[str, str]:
    """Subject -> the plan by which most of its trials were measured."""
    counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        counted[result.subject][result.plan] += 1
    return {subject: plans.most_common(1)[0][0] for subject, plans in counted.items()}
