"""The gate as a stage: measures the champion as the candidate was measured, and decides."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from dreambooth_core import telemetry
from dreambooth_core.config import Config
from dreambooth_core.console import Progress
from dreambooth_core.diffusion.sampling import images_prefix
from dreambooth_core.digests import digest_json
from dreambooth_core.evaluation.evaluate import drawn_like, evaluate
from dreambooth_core.evaluation.gate_rules import GateDecision, decide, overridden
from dreambooth_core.evaluation.integrity import GateCase, MeasuredModel
from dreambooth_core.metrics import catalogue
from dreambooth_core.metrics.statistics import compare, rows_of, shared_metrics
from dreambooth_core.storage.records import (
    ImageScores,
    ImageSet,
    Record,
    Scores,
    SeedSet,
    Verdict,
    Weights,
)
from dreambooth_core.storage.stage_cache import cached_stage
from dreambooth_core.storage.stores import Store


class ScoredModel(Record):
    """A model version in service, with all that it takes to draw from it again."""

    name: str
    """NAME/version in the registry."""
    config: Config
    """What it was trained by."""
    weights: Weights


class SeedNoise(Record):
    """How much a model differs from itself when it is drawn with other seeds."""

    level: float
    """Of the two-sided intervals."""
    half_widths: dict[str, float]
    """Metric -> half the width of the interval of the difference."""


@dataclass(frozen=True)
class GateContext:
    """Where models are measured, by which photos, and by what."""

    candidate: Config
    """Its plan, base and class are everyone's measure, whatever they were trained on."""
    store: Store
    instance: ImageSet
    progress: Progress | None

    def measure(
        self, who: ScoredModel, seed_set: SeedSet = "confirm", round: int = 1
    ) -> MeasuredModel:
        where = "with other seeds" if seed_set == "dev" else f"round {round}"
        told = _labelled(self.progress, f"{who.name}, {where}")
        scores, _ = evaluate(
            who.config,
            self.store,
            self.instance,
            who.weights,
            told,
            by=self.candidate,
            seed_set=seed_set,
            round=round,
        )
        return self.measured(scores)

    def measured(self, scores: Scores) -> MeasuredModel:
        return MeasuredModel(scores, rows_of(self.store, scores))

    def identity(self, who: ScoredModel) -> list[str]:
        """What decides a contender's images, beside the plan."""
        drawn, subject = drawn_like(who.config, self.candidate), who.config.subject
        return [images_prefix(drawn, who.weights), subject.identifier, subject.class_noun]


def judge(
    config: Config,
    store: Store,
    instance: ImageSet,
    weights: Weights,
    scores: Scores,
    champion: ScoredModel | None,
    progress: Progress | None = None,
) -> tuple[Verdict, bool]:
    """What the gate says of `weights`, measured as `scores`, and whether it had said so before.

    A round that leaves it open is followed by one with twice the seeds for both models, up to
    `gate.rounds`; the images of the rounds before are found again. Raises what `evaluate` raises.
    """
    candidate = ScoredModel(name="candidate", config=config, weights=weights)
    court = GateContext(config, store, instance, progress)
    inputs = {
        "rules": config.gate.model_dump(exclude={"auto_promote"}),
        "scores": scores.digest,
        "base": images_prefix(config, None),
        "candidate": court.identity(candidate),
        "champion": champion and [champion.name, *court.identity(champion)],
    }

    def make(key: str) -> Verdict:
        case, decision = _decided(court, candidate, scores, champion)
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
            candidate=case.candidate.scores,
            champion=case.champion and case.champion.scores,
        )
        return _stamped(verdict)

    return cached_stage(store, "verdicts", inputs, Verdict, make)


def override(store: Store, verdict: Verdict, person: str, reason: str) -> Verdict:
    """The verdict as a named person, who answers for it, overrules it: it promotes.

    Raises `ConfigError` as `overridden` does.
    """
    inputs = {"verdict": verdict.digest, "person": person, "reason": reason}

    def make(key: str) -> Verdict:
        return overruled(verdict, person, reason).model_copy(update={"uri": _uri(store, key)})

    return cached_stage(store, "verdicts", inputs, Verdict, make)[0]


def overruled(verdict: Verdict, person: str, reason: str) -> Verdict:
    """What `override` stores, before it has a place of its own."""
    decision = overridden(verdict, person, reason)
    told = {name: getattr(decision, name) for name in ("outcome", "sentence", "reasons")}
    return _stamped(verdict.model_copy(update=told))


def noise_of(court: GateContext, champion: ScoredModel) -> SeedNoise:
    """The champion against itself on two seed sets that have nothing in common; measured once.

    Its images are paired by their place in the plan, which pairs nothing but prompts.
    """
    one = court.measure(champion)
    level = 1 - 2 * court.candidate.gate.alpha

    def make(key: str) -> SeedNoise:
        other = court.measure(champion, "dev")
        return SeedNoise(level=level, half_widths=half_widths(one.rows, other.rows, level))

    inputs = {"scores": one.scores.digest, "champion": court.identity(champion), "level": level}
    return cached_stage(court.store, "noise", inputs, SeedNoise, make)[0]


def half_widths(
    one: Iterable[ImageScores], other: Iterable[ImageScores], level: float
) -> dict[str, float]:
    """Metric -> half the width of the interval of the difference between two seed sets of a model."""
    here, there = _by_place(one), _by_place(other)
    names = sorted(shared_metrics(here, there))
    found = (compare(name, here, there, level) for name in names)
    return {
        each.metric: (each.high - each.low) / 2
        for each in found
        if each.low is not None and each.high is not None
    }


def _decided(
    court: GateContext, candidate: ScoredModel, scores: Scores, rival: ScoredModel | None
) -> tuple[GateCase, GateDecision]:
    """The last round's case, and what was decided on it."""
    rules = candidate.config.gate
    directions = {name: metric.higher_is_better for name, metric in catalogue().items()}
    ours = court.measured(scores)
    theirs = court.measure(rival) if rival else None
    noise = noise_of(court, rival).half_widths if rival else {}
    case = GateCase(ours, theirs, rival.name if rival else "base", noise=noise)
    decision = decide(case, rules, directions)
    while decision.outcome == "inconclusive":
        number = case.round + 1
        ours = court.measure(candidate, round=number)
        theirs = court.measure(rival, round=number) if rival else None
        case = GateCase(ours, theirs, case.against, number, noise)
        decision = decide(case, rules, directions)
    return case, decision


def _by_place(rows: Iterable[ImageScores]) -> tuple[ImageScores, ...]:
    """With the number of the image within its prompt for a seed."""
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for row in rows:
        found.append(row.model_copy(update={"seed": seen[row.kind, row.prompt]}))
        seen[row.kind, row.prompt] += 1
    return tuple(found)


def _labelled(progress: Progress | None, label: str) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, what: progress(done, total, f"{label}: {what}")


def _stamped(verdict: Verdict) -> Verdict:
    """With its digest: what was decided and on which scores, wherever they are stored."""
    said = verdict.model_dump(mode="json", exclude={"uri", "digest", "candidate", "champion"})
    scores = [verdict.candidate.digest, verdict.champion and verdict.champion.digest]
    return verdict.model_copy(update={"digest": digest_json([said, *scores])})


def _uri(store: Store, key: str) -> str:
    return f"{store.uri}/verdicts/{key}/result.json"
