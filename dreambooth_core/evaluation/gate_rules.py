"""Gate decision: whether a candidate replaces the champion; a pure function of scores and rules.

Rules, in order: integrity; absolute limits; non-inferiority margins against the champion;
superiority in the primary metric. A rule is passed or failed when the whole confidence interval is
on one side of its bound, and open otherwise. One failed rule keeps the champion; an open rule
requires more seeds while rounds are left.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from dreambooth_core.config import Gate
from dreambooth_core.errors import ConfigError
from dreambooth_core.evaluation.integrity import (
    GateCase,
    coverage,
    integrity_failures,
    integrity_passed,
    metrics_of,
    primary_metric,
    reference_rows,
)
from dreambooth_core.metrics import range_of
from dreambooth_core.metrics.statistics import compare, estimate, shared_metrics
from dreambooth_core.storage.records import Comparison, Estimate, ImageScores, Reason, Verdict

Outcome = Literal["promote", "keep", "inconclusive"]
Directions = Mapping[str, bool]
"""Metric -> whether higher is better."""


@dataclass(frozen=True)
class GateDecision:
    """Outcome, reasons and comparisons of a verdict."""

    outcome: Outcome
    sentence: str
    reasons: tuple[Reason, ...]
    comparisons: tuple[Comparison, ...]


def decide(case: GateCase, rules: Gate, directions: Directions) -> GateDecision:
    """Promote, keep the champion, or require more seeds, with reasons and comparisons.

    Advisory metrics of the case are compared, and no rule uses them.
    """
    notes, rules = tuple(_notes(case, rules)), _without(rules, case.advisory)
    failures = tuple(integrity_failures(case, rules))
    if failures:
        sentence = f"Not promoted: {failures[0].sentence}."
        return GateDecision("keep", sentence, (*failures, *notes), ())
    level = level_of(rules, case.round)
    comparisons = tuple(_comparisons(case, level, directions))
    reasons = (
        integrity_passed(case, rules),
        *notes,
        *_limits(case, rules, level, directions),
        *(_guards(case, rules, comparisons) if case.champion else ()),
        *_coverage_losses(case, rules),
        _superiority(case, rules, comparisons),
    )
    outcome = _outcome(reasons, last=case.round >= rules.rounds)
    return GateDecision(outcome, _sentence(outcome, reasons), reasons, comparisons)


def level_of(rules: Gate, round: int) -> float:
    """Level of the two-sided intervals of a round, counted from 1.

    Each round spends the share of `alpha` that its new images are of all images, at each end: the
    linear spending function of Lan & DeMets (1983, "Discrete Sequential Boundaries for Clinical
    Trials"), summed over rounds (Bonferroni). The rounds are correlated, so the total error is below
    `alpha`.
    """
    images = [0, *(2.0**number for number in range(rules.rounds))]
    new = images[round] - images[round - 1]
    return 1 - 2 * rules.alpha * (new / images[-1])


def overridden(verdict: Verdict, person: str, reason: str) -> GateDecision:
    """A promotion by a named person, with the verdict's reasons and one more.

    Raises `ConfigError` for a blank name or reason, and for a verdict with failed integrity.
    """
    if not person.strip() or not reason.strip():
        raise ConfigError("an override of the gate needs a name and a reason")
    if any(each.rule == "integrity" and each.outcome == "failed" for each in verdict.reasons):
        raise ConfigError(
            f"the gate cannot be overridden for a candidate without valid scores: {verdict.sentence}"
        )
    promotion = f"{person.strip()} promotes it: {reason.strip()}"
    override = Reason(rule="override", metric="all", outcome="passed", sentence=promotion)
    sentence = f"{promotion.rstrip('.')}; the gate's decision was: {verdict.sentence}"
    return GateDecision("promote", sentence, (*verdict.reasons, override), verdict.comparisons)


def _comparisons(case: GateCase, level: float, directions: Directions) -> Iterator[Comparison]:
    ours, theirs = case.candidate.rows, reference_rows(case)
    for metric in sorted(shared_metrics(ours, theirs) & directions.keys()):
        found = compare(metric, ours, theirs, level, directions[metric])
        yield found.model_copy(update={"advisory": metric in case.advisory})


def _notes(case: GateCase, rules: Gate) -> Iterator[Reason]:
    """One reason per advisory metric that the rules name."""
    for metric in dict.fromkeys((*rules.primary, *rules.limits, *rules.margins)):
        if metric in case.advisory:
            sentence = f"{_words(metric)} is advisory and not checked: {case.advisory[metric]}"
            yield Reason(rule="advisory", metric=metric, outcome="passed", sentence=sentence)


def _without(rules: Gate, metrics: Mapping[str, str]) -> Gate:
    """The rules without those on some metrics."""

    def kept(bounds: Mapping[str, float | None]) -> dict[str, float | None]:
        return {name: bound for name, bound in bounds.items() if name not in metrics}

    primary = tuple(name for name in rules.primary if name not in metrics)
    changes = {"primary": primary, "limits": kept(rules.limits), "margins": kept(rules.margins)}
    return rules.model_copy(update=changes)


def _limits(case: GateCase, rules: Gate, level: float, directions: Directions) -> Iterator[Reason]:
    rows = case.candidate.rows
    known = metrics_of(rows)
    for metric, limit in rules.limits.items():
        if limit is None or metric not in known & directions.keys():
            continue
        found, up = estimate(metric, rows, level, range_of(metric)), directions[metric]
        outcome = _against(limit, found.low, found.high, up)
        side = "at least" if up else "at most"
        sentence = (
            f"{_words(metric)} is {found.value:.3f}{_ends(found.low, found.high)}, "
            f"where {side} {limit:.3f} is required{_rare(metric, rows, found, level)}"
        )
        yield Reason(rule="absolute", metric=metric, outcome=outcome, sentence=sentence)


def _guards(case: GateCase, rules: Gate, comparisons: Iterable[Comparison]) -> Iterator[Reason]:
    by_name = {found.metric: found for found in comparisons}
    for metric, margin in rules.margins.items():
        if margin is None or metric not in by_name:
            continue
        found, noise = by_name[metric], case.noise.get(metric, 0.0)
        allowed = max(margin, noise) * (-1 if found.higher_is_better else 1)
        outcome = _against(allowed, found.low, found.high, found.higher_is_better)
        sentence = f"{_difference(found, case.against)}, where {allowed:+.3f} is allowed"
        if noise > margin:
            sentence += ", the champion's own variation between seeds"
        yield Reason(rule="non-inferiority", metric=metric, outcome=outcome, sentence=sentence)


def _coverage_losses(case: GateCase, rules: Gate) -> Iterator[Reason]:
    """Coverage of the primary metric against the reference's; no reason at full coverage."""
    metric = primary_metric(case, rules)
    assert metric is not None  # `integrity_failures` has excluded it
    ours, theirs = case.candidate.rows, reference_rows(case)
    (found, expected), (of_reference, _) = (
        coverage(metric, *both) for both in ((ours, theirs), (theirs, ours))
    )
    if found == expected:
        return
    lost = of_reference - found
    yield Reason(
        rule="non-inferiority",
        metric=metric,
        outcome="passed" if lost <= rules.max_coverage_loss * expected else "open",
        sentence=f"{_words(metric)} is known for {found} of {expected} images, and for "
        f"{of_reference} of {_name(case.against)}'s, where a loss of "
        f"{rules.max_coverage_loss:.0%} is allowed",
    )


def _superiority(case: GateCase, rules: Gate, comparisons: Iterable[Comparison]) -> Reason:
    metric = primary_metric(case, rules)
    found = next(each for each in comparisons if each.metric == metric)
    outcome = _against(0.0, found.low, found.high, found.higher_is_better)
    sentence = _difference(found, case.against)
    return Reason(rule="superiority", metric=found.metric, outcome=outcome, sentence=sentence)


def _against(
    bound: float, low: float | None, high: float | None, higher_is_better: bool
) -> Literal["passed", "failed", "open"]:
    """Side of `bound` on which the interval is; a bound within or at the end counts against it."""
    if low is None or high is None:
        return "open"
    worst, best = (low - bound, high - bound) if higher_is_better else (bound - high, bound - low)
    if worst > 0:
        return "passed"
    return "failed" if best <= 0 else "open"


def _outcome(reasons: Iterable[Reason], last: bool) -> Outcome:
    outcomes = {reason.outcome for reason in reasons}
    if outcomes == {"passed"}:
        return "promote"
    return "keep" if last or "failed" in outcomes else "inconclusive"


def _sentence(outcome: Outcome, reasons: tuple[Reason, ...]) -> str:
    """The decision with the numbers of the deciding rule."""
    if outcome == "promote":
        guarded = any(reason.rule == "non-inferiority" for reason in reasons)
        passed = "every guard is passed" if guarded else "every limit is met"
        return f"Promoted: {reasons[-1].sentence}, and {passed}."
    failed = [reason for reason in reasons if reason.outcome == "failed"]
    if failed:
        return f"Not promoted: {failed[0].sentence}."
    first = next(reason for reason in reasons if reason.outcome == "open")
    if outcome == "keep":
        return f"Not promoted, inconclusive after the last round: {first.sentence}."
    return f"Inconclusive: {first.sentence}."


def _rare(metric: str, rows: Iterable[ImageScores], found: Estimate, level: float) -> str:
    """For a share of 0 or 1: the exact bound of the true share (Clopper & Pearson 1934).

    Such values have no spread and hence an interval of zero width, by which the rule is decided.
    The bound takes images as independent.
    """
    if range_of(metric) != (0, 1) or found.low != found.high or found.value not in (0, 1):
        return ""
    images = sum(metric in row.scores for row in rows)
    bound = 1 - ((1 - level) / 2) ** (1 / images)
    return f"; {images} images cannot distinguish it from {abs(found.value - bound):.3f}"


def _difference(found: Comparison, against: str) -> str:
    return (
        f"{_words(found.metric)} is {found.challenger:.3f} against {found.champion:.3f} of {_name(against)}, "
        f"a difference of {found.difference:+.3f}{_ends(found.low, found.high, '+')}"
    )


def _name(against: str) -> str:
    return "the base" if against == "base" else against


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _ends(low: float | None, high: float | None, sign: str = "") -> str:
    return "" if low is None or high is None else f" ({low:{sign}.3f} to {high:{sign}.3f})"
