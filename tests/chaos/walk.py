"""One case: start a run, apply the fault, follow the run to its end, check the results."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from dreambooth_core.errors import DreamBoothError
from tests.chaos import checks
from tests.chaos.cases import Case
from tests.chaos.report import Outcome, Row
from tests.chaos.scene import Scene

FAILED = ("lost", "stuck")
SEARCH_SECONDS = 0.1
"""Interval for finding the fault's target among all processes."""


@dataclass(frozen=True)
class Reference:
    """The undisturbed run."""

    weights: Mapping[str, str]
    """File -> SHA-256."""
    seconds: Mapping[str, float]
    """Stage -> duration."""


@dataclass
class Strike:
    """One application of the fault, and its consequences."""

    stage: str
    moment: float = 0.0
    outcome: Outcome = "missed"
    before: set[str] = field(default_factory=set)
    orphans: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    note: str = ""


def run_case(case: Case, scene: Scene, reference: Reference) -> list[Row]:
    """A row per stage of the case. Raises `TimeIsUp` at the suite's deadline."""
    problem = case.fault.prepare(scene)
    if problem:
        return [_row(case, Strike(stage, outcome="skipped", note=problem)) for stage in case.stages]
    scene.start()
    strikes = _struck(case, scene, reference)
    _finish(scene, strikes)
    _check(case, scene, strikes)
    equal = _weights_equal(scene, reference, strikes)
    return [_row(case, strike, equal) for strike in strikes]


def _struck(case: Case, scene: Scene, reference: Reference) -> list[Strike]:
    """A strike per stage of the case, stages that were not reached included."""
    strikes: list[Strike] = []
    for stage, share in zip(case.stages, case.moments, strict=True):
        if not _reached(scene, strikes, stage):
            break
        strikes.append(Strike(stage, share * reference.seconds[stage]))
        _strike(case, scene, strikes[-1])
        _follow(case, scene, strikes[-1])
        if strikes[-1].outcome in FAILED:
            break
    return strikes + [Strike(stage) for stage in case.stages[len(strikes) :]]


def _reached(scene: Scene, strikes: list[Strike], stage: str) -> bool:
    """Wait for a stage; a stop of the run before it is attributed to the last strike."""
    while not scene.reach(stage):
        if scene.state() == "COMPLETED" or not _goes_on(scene, strikes):
            return False
    return True


def _finish(scene: Scene, strikes: list[Strike]) -> None:
    """Follow the run to its end; a wrong end, or none, is attributed to a strike."""
    struck = [strike for strike in strikes if strike.outcome != "missed"]
    failed = any(strike.outcome in FAILED for strike in strikes)
    while not failed:
        scene.until(scene.has_stopped)
        if scene.state() == "COMPLETED":
            return
        failed = not _goes_on(scene, struck)
    if not any(strike.outcome in FAILED for strike in strikes):
        strikes[-1].outcome, strikes[-1].note = "lost", f"ended as {scene.state()} before the fault"
    scene.clear()


def _goes_on(scene: Scene, strikes: list[Strike]) -> bool:
    """Retry a stopped run, once per strike; whether it was retried."""
    if not strikes:
        return False
    last = strikes[-1]
    if not scene.has_ended():
        last.outcome, last.note = "stuck", f"{last.note} no process works on it".strip()
        return False
    if last.outcome != "by itself":
        last.outcome, last.note = "lost", f"{last.note}, then as {scene.state()}"
        return False
    _retry(scene, last)
    return True


def _strike(case: Case, scene: Scene, strike: Strike) -> None:
    def ready() -> bool:
        return case.fault.ready(scene) or scene.has_stopped()

    scene.until(ready, SEARCH_SECONDS)
    strike.before = checks.kept(scene.store)
    time.sleep(strike.moment)
    scene.until(ready, SEARCH_SECONDS)
    strike.stage = scene.attempt.stage() or strike.stage
    if not scene.has_stopped():
        case.fault.strike(scene)
        strike.outcome = "by itself"


def _follow(case: Case, scene: Scene, strike: Strike) -> None:
    """Wait until the stage is over, with one retry if needed."""
    if strike.outcome == "missed":
        return
    _wait_under(case, scene, strike)
    case.fault.lift(scene)
    while not scene.is_past(strike.stage) and scene.state() != "COMPLETED":
        if not _goes_on(scene, [strike]):
            return
        scene.until(lambda: scene.is_past(strike.stage) or scene.has_stopped())


def _wait_under(case: Case, scene: Scene, strike: Strike) -> None:
    """Wait while the fault lasts, and until the stage is over or the run has stopped."""
    lasts = float("inf") if case.fault.seconds is None else case.fault.seconds
    until = time.monotonic() + lasts

    def over() -> bool:
        if time.monotonic() > until:
            case.fault.lift(scene)
        return scene.is_past(strike.stage) or scene.has_stopped()

    scene.until(over)


def _retry(scene: Scene, strike: Strike) -> None:
    """Check for orphans and damage, then retry the run."""
    strike.outcome, strike.note = "one retry", f"ended as {scene.state()}"
    strike.orphans += scene.left()
    scene.until(scene.system.is_whole)
    strike.lost += checks.incomplete(scene.store)
    strike.lost += checks.versions_without_weights(scene.config, scene.store)
    scene.retry()


def _check(case: Case, scene: Scene, strikes: list[Strike]) -> None:
    """Check an ended run; findings are attributed to the last strike."""
    case.fault.lift(scene)
    scene.until(scene.system.is_whole)
    last = strikes[-1]
    last.orphans += scene.left()
    last.lost += checks.incomplete(scene.store)
    last.lost += checks.versions_without_weights(scene.config, scene.store)
    if scene.state() == "COMPLETED":
        last.lost += checks.contradictions(scene.config, scene.store)
    now = checks.kept(scene.store)
    for strike in strikes:
        strike.lost += sorted(strike.before - now)


def _weights_equal(scene: Scene, reference: Reference, strikes: list[Strike]) -> bool | None:
    """Whether the weights equal the reference's; None without weights."""
    try:
        weights = checks.weights_of(scene.store)
    except DreamBoothError as error:
        strikes[-1].lost.append(str(error))
        return False
    return weights == reference.weights if weights else None


def _row(case: Case, strike: Strike, equal: bool | None = None) -> Row:
    return Row(
        fault=case.fault.name,
        stage=strike.stage,
        outcome=strike.outcome,
        weights_equal=equal,
        orphans=tuple(strike.orphans),
        lost=tuple(dict.fromkeys(strike.lost)),
        case=case.name,
        moment=round(strike.moment, 2),
        note=strike.note,
    )
