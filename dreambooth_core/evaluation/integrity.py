"""Whether measurements are something to decide by: one plan, every image there, all numbers finite."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dreambooth_core.config import Gate
from dreambooth_core.metrics.statistics import of_base, place, shared_metrics
from dreambooth_core.storage.records import ImageScores, Reason, Scores


@dataclass(frozen=True)
class MeasuredModel:
    """A model as the evaluation found it."""

    scores: Scores
    rows: tuple[ImageScores, ...]
    """Of the scores' table."""


@dataclass(frozen=True)
class GateCase:
    """What is decided on."""

    candidate: MeasuredModel
    champion: MeasuredModel | None = None
    """None for a first model, whose rival is the base in its own rows."""
    against: str = "base"
    """The champion as NAME/version."""
    round: int = 1
    noise: Mapping[str, float] = field(default_factory=dict)
    """Metric -> half the width of the interval of the champion's difference from itself, drawn with
    other seeds."""


def unsound(case: GateCase, rules: Gate) -> Iterator[Reason]:
    """Why they are nothing to decide by; nothing when they are."""
    scores, rows = case.candidate.scores, case.candidate.rows
    seeds = Counter((row.kind, row.prompt) for row in rows if row.kind != "class")
    expected = scores.samples.count + scores.class_samples.count
    wrong = [
        (
            scores.seed_set != "confirm",
            "the candidate was measured with the seeds by which it may have been chosen (dev)",
        ),
        (
            len(rows) != expected or len(set(map(place, rows))) != expected,
            f"{len(rows)} images were scored where the plan has {expected}",
        ),
        (
            len(set(seeds.values())) > 1,
            "not every prompt has the same number of images",
        ),
        (
            len(seeds) < 2,
            "of a single prompt nothing can be said with certainty: give evaluation.prompts more",
        ),
        (not _finite(rows), "a score of the candidate is not a finite number"),
        *_unlike(case),
    ]
    yield from (_failed("all", sentence) for bad, sentence in wrong if bad)
    first = primary(case, rules)
    if first is None:
        yield _failed("all", f"none of {', '.join(rules.primary)} was measured")
        return
    guarded = (
        name for name, bound in {**rules.limits, **rules.margins}.items() if bound is not None
    )
    for metric in dict.fromkeys((first, *guarded)):
        found, asked = coverage(metric, rows)
        if found < rules.min_coverage * asked:
            yield _failed(
                metric,
                f"{metric} has something to say of {found} of {asked} images only, where "
                f"gate.min_coverage asks for {rules.min_coverage:.0%}",
            )


def _unlike(case: GateCase) -> Iterator[tuple[bool, str]]:
    """In what the champion's measurement is not the candidate's."""
    if case.champion is None:
        return
    ours, theirs = case.candidate, case.champion
    same = set(map(place, ours.rows)) == set(map(place, theirs.rows))
    yield (
        ours.scores.plan != theirs.scores.plan or not same,
        f"{case.against} was measured by another plan, with which nothing can be compared",
    )
    yield not _finite(theirs.rows), f"a score of {case.against} is not a finite number"


def coverage(
    metric: str, rows: Sequence[ImageScores], others: Sequence[ImageScores] = ()
) -> tuple[int, int]:
    """How many images have the metric, and how many should.

    It is asked of all images of each prompt of which it says anything, be it of the base or of others.
    """
    prompts = {
        (row.kind, row.prompt)
        for row in (*rows, *others)
        if metric in row.scores or metric in row.base_scores
    }
    asked = [row for row in rows if (row.kind, row.prompt) in prompts]
    return sum(metric in row.scores for row in asked), len(asked)


def sound(case: GateCase, rules: Gate) -> Reason:
    """That they are something to decide by, and of which rules they say nothing."""
    rows = case.candidate.rows
    asked = {name for name, bound in {**rules.limits, **rules.margins}.items() if bound is not None}
    missing = sorted(asked - metrics_of(rows))
    sentence = f"all {len(rows)} images were measured by one plan"
    if missing:
        sentence += f"; nothing is asked of {', '.join(missing)}, which nobody measured"
    return Reason(rule="integrity", metric="all", outcome="passed", sentence=sentence)


def rival(case: GateCase) -> tuple[ImageScores, ...]:
    """The rows to compare with: the champion's, or the base's."""
    return case.champion.rows if case.champion else of_base(case.candidate.rows)


def primary(case: GateCase, rules: Gate) -> str | None:
    """The metric in which the candidate must be better: the first that both have."""
    both = shared_metrics(case.candidate.rows, rival(case))
    return next((name for name in rules.primary if name in both), None)


def metrics_of(rows: Iterable[ImageScores]) -> set[str]:
    """Those that at least one image has."""
    return {name for row in rows for name in row.scores}


def _finite(rows: Iterable[ImageScores]) -> bool:
    values = (value for row in rows for value in (*row.scores.values(), *row.base_scores.values()))
    return all(map(math.isfinite, values))


def _failed(metric: str, sentence: str) -> Reason:
    return Reason(rule="integrity", metric=metric, outcome="failed", sentence=sentence)
