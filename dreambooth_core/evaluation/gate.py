"""The gate as a stage: evaluates the champion by the candidate's plan, and stores the verdict."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dreambooth_core import telemetry
from dreambooth_core.config import Config
from dreambooth_core.console import Progress, labelled
from dreambooth_core.diffusion.sampling import images_prefix
from dreambooth_core.digests import digest_json
from dreambooth_core.evaluation.calibration import advisory_metrics
from dreambooth_core.evaluation.evaluate import evaluate, with_sampling_of
from dreambooth_core.evaluation.gate_rules import GateDecision, decide, overridden
from dreambooth_core.evaluation.integrity import GateCase, MeasuredModel
from dreambooth_core.evaluation.pairwise import preferences
from dreambooth_core.metrics import catalogue
from dreambooth_core.metrics.statistics import compare, rows_of, shared_metrics
from dreambooth_core.storage.records import (
    ImageScores,
    ImageSet,
    Preferences,
    Record,
    Scores,
    SeedSet,
    Verdict,
    Weights,
)
from dreambooth_core.storage.stage_cache import cached_stage
from dreambooth_core.storage.stores import Store


class ScoredModel(Record):
    """A model version and everything needed to sample from it."""

    name: str
    """NAME/version in the registry."""
    config: Config
    """The config of its training."""
    weights: Weights


class SeedNoise(Record):
    """Difference between two seed sets of one model."""

    level: float
    """Level of the two-sided intervals."""
    half_widths: dict[str, float]
    """Metric -> half the width of the interval of the difference."""


@dataclass(frozen=True)
class GateContext:
    """Config, store and photos by which both models are evaluated."""

    candidate: Config
    """Its plan, base and class apply to both models."""
    store: Store
    instance: ImageSet
    progress: Progress | None

    def measure(
        self, model: ScoredModel, seed_set: SeedSet = "confirm", round: int = 1
    ) -> MeasuredModel:
        seeds = "with other seeds" if seed_set == "dev" else f"round {round}"
        scores, _ = evaluate(
            model.config,
            self.store,
            self.instance,
            model.weights,
            labelled(self.progress, f"{model.name}, {seeds}"),
            plan_config=self.candidate,
            seed_set=seed_set,
            round=round,
        )
        return self.measured(scores)

    def measured(self, scores: Scores) -> MeasuredModel:
        return MeasuredModel(scores, rows_of(self.store, scores))

    def identity(self, model: ScoredModel) -> list[str]:
        """What decides a model's images, apart from the plan."""
        sampled, subject = with_sampling_of(model.config, self.candidate), model.config.subject
        return [images_prefix(sampled, model.weights), subject.identifier, subject.class_noun]


def judge(
    config: Config,
    store: Store,
    instance: ImageSet,
    weights: Weights,
    scores: Scores,
    champion: ScoredModel | None,
    progress: Progress | None = None,
) -> tuple[Verdict, bool]:
    """Verdict on `weights` with their `scores`, and whether it was stored already.

    An inconclusive round is followed by one with twice the seeds for both models, up to
    `gate.rounds`, reusing the images of earlier rounds. Metrics of a judge without a sufficient
    calibration are advisory. Raises what `evaluate` raises.
    """
    advisory, by = advisory_metrics(config, store), config.judge
    candidate = ScoredModel(name="candidate", config=config, weights=weights)
    context = GateContext(config, store, instance, progress)
    inputs = {
        "rules": config.gate.model_dump(exclude={"auto_promote"}),
        "scores": scores.digest,
        "base": images_prefix(config, None),
        "candidate": context.identity(candidate),
        "champion": champion and [champion.name, *context.identity(champion)],
        **({"advisory": advisory, "pairwise": by.pairwise} if by else {}),
    }

    def make(key: str) -> Verdict:
        case, decision = _decided(context, candidate, scores, champion, advisory)
        telemetry.send("dreambooth_gate_decisions_total", 1, outcome=decision.outcome)
        verdict = Verdict(
            uri=_uri(store, key),
            digest="",
            outcome=decision.outcome,
            sentence=decision.sentence,
            reasons=decision.reasons,
            comparisons=decision.comparisons,
            against=case.against,
            rounds=case.round,
            noise=dict(case.noise),
            advisory=advisory,
            preferences=_preferences(context, case),
            candidate=case.candidate.scores,
            champion=case.champion and case.champion.scores,
        )
        return _with_digest(verdict)

    return cached_stage(store, "verdicts", inputs, Verdict, make)


def override(store: Store, verdict: Verdict, person: str, reason: str) -> Verdict:
    """The stored verdict after a named person's decision to promote; raises as `overridden` does."""
    inputs = {"verdict": verdict.digest, "person": person, "reason": reason}

    def make(key: str) -> Verdict:
        return overruled(verdict, person, reason).model_copy(update={"uri": _uri(store, key)})

    return cached_stage(store, "verdicts", inputs, Verdict, make)[0]


def overruled(verdict: Verdict, person: str, reason: str) -> Verdict:
    """The verdict that `override` stores, without its URI."""
    decision = overridden(verdict, person, reason)
    changes = {name: getattr(decision, name) for name in ("outcome", "sentence", "reasons")}
    return _with_digest(verdict.model_copy(update=changes))


def noise_of(context: GateContext, champion: ScoredModel) -> SeedNoise:
    """The champion's difference from itself on two disjoint seed sets; cached.

    Images are paired by their index within the prompt.
    """
    one = context.measure(champion)
    level = 1 - 2 * context.candidate.gate.alpha

    def make(key: str) -> SeedNoise:
        other = context.measure(champion, "dev")
        return SeedNoise(level=level, half_widths=half_widths(one.rows, other.rows, level))

    inputs = {"scores": one.scores.digest, "champion": context.identity(champion), "level": level}
    return cached_stage(context.store, "noise", inputs, SeedNoise, make)[0]


def half_widths(
    one: Iterable[ImageScores], other: Iterable[ImageScores], level: float
) -> dict[str, float]:
    """Metric -> half the width of the interval of the difference between two seed sets of a model."""
    first, second = _numbered(one), _numbered(other)
    names = sorted(shared_metrics(first, second))
    found = (compare(name, first, second, level) for name in names)
    return {
        each.metric: (each.high - each.low) / 2
        for each in found
        if each.low is not None and each.high is not None
    }


def _preferences(context: GateContext, case: GateCase) -> Preferences | None:
    """Pairwise judgement of the last round's images; None without `evaluation.judge.pairwise`."""
    config, ours = context.candidate, case.candidate
    if config.judge is None or not config.judge.pairwise:
        return None
    rows = [row for row in ours.rows if row.kind != "class"]
    theirs = case.champion.scores.samples if case.champion else ours.scores.base_samples
    images = (ours.scores.samples.images, theirs.images)
    return preferences(config, config.judge, context.store, context.instance, rows, images)


def _decided(
    context: GateContext,
    candidate: ScoredModel,
    scores: Scores,
    champion: ScoredModel | None,
    advisory: Mapping[str, str],
) -> tuple[GateCase, GateDecision]:
    """Case and decision of the last round."""
    rules = candidate.config.gate
    directions = {name: metric.higher_is_better for name, metric in catalogue().items()}
    ours = context.measured(scores)
    theirs = context.measure(champion) if champion else None
    noise = noise_of(context, champion).half_widths if champion else {}
    against = champion.name if champion else "base"
    case = GateCase(ours, theirs, against, noise=noise, advisory=advisory)
    decision = decide(case, rules, directions)
    while decision.outcome == "inconclusive":
        number = case.round + 1
        ours = context.measure(candidate, round=number)
        theirs = context.measure(champion, round=number) if champion else None
        case = GateCase(ours, theirs, case.against, number, noise, advisory)
        decision = decide(case, rules, directions)
    return case, decision


def _numbered(rows: Iterable[ImageScores]) -> tuple[ImageScores, ...]:
    """The rows with the image's index within its prompt as seed."""
    counts: Counter[tuple[str, str]] = Counter()
    found = []
    for row in rows:
        found.append(row.model_copy(update={"seed": counts[row.kind, row.prompt]}))
        counts[row.kind, row.prompt] += 1
    return tuple(found)


def _with_digest(verdict: Verdict) -> Verdict:
    """The digest covers the decision and both scores, and not where they are stored."""
    decided = verdict.model_dump(mode="json", exclude={"uri", "digest", "candidate", "champion"})
    scores = [verdict.candidate.digest, verdict.champion and verdict.champion.digest]
    return verdict.model_copy(update={"digest": digest_json([decided, *scores])})


def _uri(store: Store, key: str) -> str:
    return f"{store.uri}/verdicts/{key}/result.json"
