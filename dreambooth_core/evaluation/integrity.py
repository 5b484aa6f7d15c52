"""Integrity rules of the gate: one plan, every image scored, all numbers finite, enough coverage."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dreambooth_core.config import Gate
from dreambooth_core.metrics.statistics import image_key, of_base, shared_metrics
from dreambooth_core.storage.records import ImageScores, Reason, Scores

NO_PRIMARY = "every metric of gate.primary is advisory: add one that no judge measures"


@dataclass(frozen=True)
class MeasuredModel:
    """A model's scores with their rows."""

    scores: Scores
    rows: tuple[ImageScores, ...]
    """Rows of the scores' table."""


@dataclass(frozen=True)
class GateCase:
    """Input of a decision."""

    candidate: MeasuredModel
    champion: MeasuredModel | None = None
    """None for a first model, which is compared with the base scores in its own rows."""
    against: str = "base"
    """The champion as NAME/version."""
    round: int = 1
    noise: Mapping[str, float] = field(default_factory=dict)
    """Metric -> half the width of the interval of the champion's difference from itself, sampled
    with other seeds."""
    advisory: Mapping[str, str] = field(default_factory=dict)
    """Metric that the decision must not use -> the reason; its comparison is shown."""


def integrity_failures(case: GateCase, rules: Gate) -> Iterator[Reason]:
    """One failed reason per violated integrity rule."""
    scores, rows = case.candidate.scores, case.candidate.rows
    seeds = Counter((row.kind, row.prompt) for row in rows if row.kind != "class")
    expected = scores.samples.count + scores.class_samples.count
    checks = [
        (
            scores.seed_set != "confirm",
            "the candidate was measured with the seeds that may have selected it (dev)",
        ),
        (
            len(rows) != expected or len(set(map(image_key, rows))) != expected,
            f"{len(rows)} images were scored where the plan has {expected}",
        ),
        (len(set(seeds.values())) > 1, "prompts have different numbers of images"),
        (
            len(seeds) < 2,
            "a single prompt allows no confidence interval: add prompts to evaluation.prompts",
        ),
        (not _finite(rows), "a score of the candidate is not a finite number"),
        *_champion_checks(case),
    ]
    yield from (_failed("all", sentence) for bad, sentence in checks if bad)
    first = primary_metric(case, rules)
    if first is None:
        names = ", ".join(rules.primary)
        yield _failed("all", f"none of {names} was measured" if names else NO_PRIMARY)
        return
    guarded = (
        name for name, bound in {**rules.limits, **rules.margins}.items() if bound is not None
    )
    for metric in dict.fromkeys((first, *guarded)):
        found, expected = coverage(metric, rows)
        if found < rules.min_coverage * expected:
            yield _failed(
                metric,
                f"{metric} has a value for {found} of {expected} images only, where "
                f"gate.min_coverage requires {rules.min_coverage:.0%}",
            )


def _champion_checks(case: GateCase) -> Iterator[tuple[bool, str]]:
    """(violated, sentence) of the rules on the champion's scores."""
    if case.champion is None:
        return
    ours, theirs = case.candidate, case.champion
    same = set(map(image_key, ours.rows)) == set(map(image_key, theirs.rows))
    yield (
        ours.scores.plan != theirs.scores.plan or not same,
        f"{case.against} was measured by another plan and cannot be compared",
    )
    yield not _finite(theirs.rows), f"a score of {case.against} is not a finite number"


def coverage(
    metric: str, rows: Sequence[ImageScores], others: Sequence[ImageScores] = ()
) -> tuple[int, int]:
    """Number of images with the metric, and of images expected to have it.

    Expected are all images of each prompt with a value for any image, of the base and of `others`
    included.
    """
    prompts = {
        (row.kind, row.prompt)
        for row in (*rows, *others)
        if metric in row.scores or metric in row.base_scores
    }
    expected = [row for row in rows if (row.kind, row.prompt) in prompts]
    return sum(metric in row.scores for row in expected), len(expected)


def integrity_passed(case: GateCase, rules: Gate) -> Reason:
    """The passed integrity rule; names the guarded metrics that were not measured."""
    rows = case.candidate.rows
    guarded = {
        name for name, bound in {**rules.limits, **rules.margins}.items() if bound is not None
    }
    missing = sorted(guarded - metrics_of(rows))
    sentence = f"all {len(rows)} images were measured by one plan"
    if missing:
        sentence += f"; {', '.join(missing)} not measured and therefore not checked"
    return Reason(rule="integrity", metric="all", outcome="passed", sentence=sentence)


def reference_rows(case: GateCase) -> tuple[ImageScores, ...]:
    """The rows to compare with: the champion's, or the base's."""
    return case.champion.rows if case.champion else of_base(case.candidate.rows)


def primary_metric(case: GateCase, rules: Gate) -> str | None:
    """The metric in which the candidate must be better: the first that both models have."""
    both = shared_metrics(case.candidate.rows, reference_rows(case))
    return next((name for name in rules.primary if name in both), None)


def metrics_of(rows: Iterable[ImageScores]) -> set[str]:
    """Metrics of at least one image."""
    return {name for row in rows for name in row.scores}


def _finite(rows: Iterable[ImageScores]) -> bool:
    values = (value for row in rows for value in (*row.scores.values(), *row.base_scores.values()))
    return all(map(math.isfinite, values))


def _failed(metric: str, sentence: str) -> Reason:
    return Reason(rule="integrity", metric=metric, outcome="failed", sentence=sentence)
