"""The decision: whether a candidate goes into service, by a table of reasons; a pure function.

The order is integrity, limits that hold for every model, guards in which it may not be worse than
the champion, and the primary metric in which it must be better. A rule is passed or failed when a
whole confidence interval lies on one side of its bound, and open otherwise; one failed rule keeps
the champion, an open one asks for more seeds while there are rounds left.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from dreambooth_core.config import Gate
from dreambooth_core.errors import ConfigError
from dreambooth_core.evaluation.integrity import (
    GateCase,
    coverage,
    metrics_of,
    primary,
    rival,
    sound,
    unsound,
)
from dreambooth_core.metrics import range_of
from dreambooth_core.metrics.statistics import compare, estimate, shared_metrics
from dreambooth_core.storage.records import Comparison, Estimate, ImageScores, Reason, Verdict

Outcome = Literal["promote", "keep", "inconclusive"]
Directions = Mapping[str, bool]
"""Metric -> whether higher is better."""


@dataclass(frozen=True)
class GateDecision:
    """What a verdict says, before it is stored."""

    outcome: Outcome
    sentence: str
    reasons: tuple[Reason, ...]
    comparisons: tuple[Comparison, ...]


def decide(case: GateCase, rules: Gate, directions: Directions) -> GateDecision:
    """Promote, keep the champion, or ask for more seeds; why, and by which comparisons."""
    broken = tuple(unsound(case, rules))
    if broken:
        return GateDecision("keep", f"Not promoted: {broken[0].sentence}.", broken, ())
    level = level_of(rules, case.round)
    comparisons = tuple(_comparisons(case, level, directions))
    reasons = (
        sound(case, rules),
        *_limits(case, rules, level, directions),
        *(_guards(case, rules, comparisons) if case.champion else ()),
        *_losses(case, rules),
        _superiority(case, rules, comparisons),
    )
    outcome = _outcome(reasons, last=case.round >= rules.rounds)
    return GateDecision(outcome, _sentence(outcome, reasons), reasons, comparisons)


def level_of(rules: Gate, round: int) -> float:
    """Level of the two-sided intervals of a round, from 1.

    A round spends that share of `alpha` which its new images are of all images, at each end: the
    linear spending function of Lan & DeMets (1983, "Discrete Sequential Boundaries for Clinical
    Trials"), its parts added up as if the rounds were strangers. They are not, so the error of all
    rounds together is below `alpha`, whatever the prompts and seeds have in common.
    """
    images = [0, *(2.0**number for number in range(rules.rounds))]
    new = images[round] - images[round - 1]
    return 1 - 2 * rules.alpha * (new / images[-1])


def overridden(verdict: Verdict, person: str, reason: str) -> GateDecision:
    """The verdict with the word of a named person, who answers for it; it promotes.

    Raises `ConfigError` for a blank name or reason, and for a verdict that failed in its integrity:
    nothing is known of such a candidate.
    """
    if not person.strip() or not reason.strip():
        raise ConfigError("who overrides the gate gives a name and a reason")
    if any(each.rule == "integrity" and each.outcome == "failed" for each in verdict.reasons):
        raise ConfigError(
            f"the gate cannot be overridden for a candidate that nothing is known of: {verdict.sentence}"
        )
    sentence = f"{person.strip()} promotes it: {reason.strip()}"
    word = Reason(rule="override", metric="all", outcome="passed", sentence=sentence)
    told = f"{sentence.rstrip('.')}; the gate had said: {verdict.sentence}"
    return GateDecision("promote", told, (*verdict.reasons, word), verdict.comparisons)


def _comparisons(case: GateCase, level: float, directions: Directions) -> Iterator[Comparison]:
    ours, theirs = case.candidate.rows, rival(case)
    for metric in sorted(shared_metrics(ours, theirs) & directions.keys()):
        yield compare(metric, ours, theirs, level, directions[metric])


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
            f"where {side} {limit:.3f} is asked{_unseen(metric, rows, found, level)}"
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
            sentence += ", since the champion differs from itself by as much"
        yield Reason(rule="non-inferiority", metric=metric, outcome=outcome, sentence=sentence)


def _losses(case: GateCase, rules: Gate) -> Iterator[Reason]:
    """Whether the primary could be measured as often as of the rival; nothing when it always could."""
    metric = primary(case, rules)
    assert metric is not None  # or it were unsound
    ours, theirs = case.candidate.rows, rival(case)
    (found, asked), (of_rival, _) = (
        coverage(metric, *both) for both in ((ours, theirs), (theirs, ours))
    )
    if found == asked:
        return
    yield Reason(
        rule="non-inferiority",
        metric=metric,
        outcome="passed" if of_rival - found <= rules.max_coverage_loss * asked else "open",
        sentence=f"{_words(metric)} is known of {found} of {asked} images, and of {of_rival} of "
        f"{_name(case.against)}'s, where {rules.max_coverage_loss:.0%} fewer of all are allowed",
    )


def _superiority(case: GateCase, rules: Gate, comparisons: Iterable[Comparison]) -> Reason:
    metric = primary(case, rules)
    found = next(each for each in comparisons if each.metric == metric)
    outcome = _against(0.0, found.low, found.high, found.higher_is_better)
    sentence = _difference(found, case.against)
    return Reason(rule="superiority", metric=found.metric, outcome=outcome, sentence=sentence)


def _against(
    bound: float, low: float | None, high: float | None, higher_is_better: bool
) -> Literal["passed", "failed", "open"]:
    """On which side of the bound an interval lies; on it is on the wrong side."""
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
    """The decision with the numbers that decided it."""
    if outcome == "promote":
        guarded = any(reason.rule == "non-inferiority" for reason in reasons)
        passed = "every guard is passed" if guarded else "every limit is kept"
        return f"Promoted: {reasons[-1].sentence}, and {passed}."
    failed = [reason for reason in reasons if reason.outcome == "failed"]
    if failed:
        return f"Not promoted: {failed[0].sentence}."
    first = next(reason for reason in reasons if reason.outcome == "open")
    if outcome == "keep":
        return f"Not promoted, as all seeds left it uncertain: {first.sentence}."
    return f"Not certain yet: {first.sentence}."


def _unseen(metric: str, rows: Iterable[ImageScores], found: Estimate, level: float) -> str:
    """What share can be in no image or in all of them by chance, where that is what was found.

    Such values have no spread, and so an interval without width, which is all that is decided by; this
    is the exact bound (Clopper & Pearson 1934), of images taken for strangers.
    """
    if range_of(metric) != (0, 1) or found.low != found.high or found.value not in (0, 1):
        return ""
    images = sum(metric in row.scores for row in rows)
    hidden = 1 - ((1 - level) / 2) ** (1 / images)
    return f"; {images} images cannot tell it from {abs(found.value - hidden):.3f}"


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
