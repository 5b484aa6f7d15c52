"""Numbers of a report, also embedded in the page as JSON for comparisons."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from dreambooth_core.config import INVERSIONS, Config
from dreambooth_core.metrics import Metric, catalogue, range_of
from dreambooth_core.metrics.statistics import compare, estimate, interval, of_base, shared_metrics
from dreambooth_core.reports.charts import Side
from dreambooth_core.reports.summary import StageResults, run_id
from dreambooth_core.storage.records import (
    Comparison,
    Estimate,
    ImageScores,
    Preferences,
    Record,
    Scores,
    Verdict,
)
from dreambooth_core.tracking.mlflow import flat

Rows = Mapping[Side, Sequence[ImageScores]]
"""Image scores per model, of one plan; `base`: the candidate's rows with the base's scores."""
LEVEL = 0.95
"""Level of the intervals computed for the report."""
ORDER = (
    *("identity", "subject_fidelity_crop", "subject_fidelity", "clip_i_crop", "clip_i"),
    *("prompt_gain", "prompt_fidelity", "prompt_rank", "attributes", "diversity"),
    *("memorisation", "prior_drift", "pres", "class_diversity"),
)
"""Order of the metrics: subject, prompts, diversity and prior preservation."""
DIGITS = 6
"""Decimal places of the embedded image scores."""


class MetricLine(Record):
    """One metric of all models."""

    metric: str
    title: str
    about: str
    higher_is_better: bool
    sides: dict[Side, Estimate]
    photos: float | None
    """The instance images' score, compared with each other."""


class ReportFacts(Record):
    """Numbers of a run."""

    run: str
    """Run id."""
    title: str
    model: str
    """NAME/version."""
    outcome: str | None
    """The gate's outcome; None without a verdict."""
    sentence: str
    plan: str
    """Digest of the evaluation plan; only equal plans are comparable. Empty in older results."""
    lines: tuple[MetricLine, ...]
    comparisons: tuple[Comparison, ...]
    """Those of the verdict, else candidate against base."""
    advisory: dict[str, str]
    """Judged metric -> why the gate did not use it."""
    preferences: Preferences | None
    """Pairwise judgement against the champion or the base."""
    rows: tuple[ImageScores, ...]
    """Image scores of the candidate with the judge's answers, without the base's."""
    config: dict[str, str]
    """Dotted key -> value, without passwords."""


def facts_of(
    config: Config, results: StageResults, scores: Scores, champion: Scores | None, sides: Rows
) -> ReportFacts:
    """Numbers of a run; missing results are left out."""
    verdict, version = results.verdict, results.version
    lines = lines_of(scores, champion, sides)
    return ReportFacts(
        run=run_id(config, results),
        title=f"{config.subject.identifier} {config.subject.class_noun}",
        model=f"{version.name}/{version.version}" if version else config.name,
        outcome=verdict.outcome if verdict else None,
        sentence=verdict.sentence if verdict else "",
        plan=scores.plan,
        lines=lines,
        comparisons=verdict.comparisons if verdict else comparisons_of(sides, lines),
        advisory=advisory_of(verdict, scores),
        preferences=verdict.preferences if verdict else None,
        rows=_compact(sides.get("candidate", ())),
        config=flat(config.model_dump(mode="json")),
    )


def sides_of(candidate: Sequence[ImageScores], champion: Sequence[ImageScores]) -> Rows:
    """Rows per model; empty without rows of the candidate, as in older results."""
    if not candidate:
        return {}
    named: dict[Side, Sequence[ImageScores]] = {"candidate": candidate}
    if champion:
        named["champion"] = champion
    return {**named, "base": of_base(candidate)}


def lines_of(candidate: Scores, champion: Scores | None, sides: Rows) -> tuple[MetricLine, ...]:
    """Lines of all metrics, in the order of `ORDER`, then by name."""
    known = catalogue()
    order = sorted(candidate.metrics, key=lambda name: ([*ORDER, name].index(name), name))
    return tuple(_line(name, known.get(name), candidate, champion, sides) for name in order)


def advisory_of(verdict: Verdict | None, scores: Scores) -> dict[str, str]:
    """Judged metrics that the gate did not use; without a verdict all of them."""
    if verdict is not None:
        return verdict.advisory
    known = catalogue()
    judged = (name for name in scores.metrics if name in known and known[name].gates != "always")
    return dict.fromkeys(judged, "no decision was made")


def comparisons_of(sides: Rows, lines: Iterable[MetricLine]) -> tuple[Comparison, ...]:
    """Paired comparisons of the candidate with the base; empty without rows."""
    ours, theirs = sides.get("candidate", ()), sides.get("base", ())
    shared = shared_metrics(ours, theirs)
    return tuple(
        compare(line.metric, ours, theirs, LEVEL, line.higher_is_better)
        for line in lines
        if line.metric in shared
    )


def prompt_means(sides: Rows) -> dict[tuple[str, str], dict[str, dict[Side, Estimate]]]:
    """(kind, prompt) -> metric -> model -> mean over seeds with its interval; without class images."""
    found: defaultdict[tuple[str, str], dict[str, dict[Side, Estimate]]] = defaultdict(dict)
    for side, rows in sides.items():
        for (kind, prompt, metric), values in _by_prompt(rows).items():
            found[kind, prompt].setdefault(metric, {})[side] = _mean(values)
    return dict(found)


def title_of(metric: str) -> str:
    """Title of a metric, also of one that no longer exists."""
    known = catalogue().get(metric)
    return known.title if known else metric.replace("_", " ")


def worst_rows(rows: Sequence[ImageScores], metric: Metric) -> list[ImageScores]:
    """Rows with the metric, the worst first."""
    sign = 1 if metric.higher_is_better else -1
    scored = [row for row in rows if metric.name in row.scores]
    return sorted(scored, key=lambda row: sign * row.scores[metric.name])


def _compact(rows: Iterable[ImageScores]) -> tuple[ImageScores, ...]:
    """Rows for embedding: rounded, without the base's scores."""
    return tuple(
        row.model_copy(
            update={
                "scores": {name: round(value, DIGITS) for name, value in row.scores.items()},
                "base_scores": {},
            }
        )
        for row in rows
    )


def _line(
    name: str, metric: Metric | None, candidate: Scores, champion: Scores | None, sides: Rows
) -> MetricLine:
    found: dict[Side, Estimate | None] = {
        "candidate": _estimate(name, candidate),
        "champion": _estimate(name, champion) if champion else None,
        "base": _base(name, candidate, sides),
    }
    return MetricLine(
        metric=name,
        title=title_of(name),
        about=metric.about if metric else "",
        higher_is_better=metric.higher_is_better if metric else True,
        sides={side: value for side, value in found.items() if value},
        photos=candidate.reference.get(name),
    )


def _estimate(name: str, scores: Scores) -> Estimate | None:
    if name in scores.estimates or name not in scores.metrics:
        return scores.estimates.get(name)
    return Estimate(value=scores.metrics[name])


def _base(name: str, scores: Scores, sides: Rows) -> Estimate | None:
    rows = sides.get("base", ())
    if _measured(name, rows):
        return estimate(name, rows, LEVEL, range_of(name))
    value = scores.base_metrics.get(name)
    return None if value is None else Estimate(value=value)


def _measured(name: str, rows: Sequence[ImageScores]) -> bool:
    return any(name in row.scores for row in rows)


def _by_prompt(rows: Sequence[ImageScores]) -> dict[tuple[str, str, str], list[float]]:
    values: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row.kind != "class":
            for metric, value in row.scores.items():
                values[row.kind, row.prompt, metric].append(value)
    return values


def _mean(values: list[float]) -> Estimate:
    import numpy as np

    array = np.array(values, np.float64)
    low, high = interval(array, LEVEL)
    return Estimate(value=float(array.mean()), low=low, high=high)


def prompt_literal(config: Config) -> str:
    """Example prompt as a Python string literal, with new tokens in place of the identifier."""
    text = config.subject.fill("a photo of {subject}")
    if config.train.method in INVERSIONS:
        from dreambooth_core.diffusion import textual_inversion

        text = textual_inversion.insert_tokens(textual_inversion.tokens_of(config), text)
    return json.dumps(text, ensure_ascii=False)
