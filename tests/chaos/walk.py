"""One case: a run from its start to a true end, struck on its way, then looked through."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from dreambooth_core.errors import DreamBoothError
from tests.chaos import checks
from tests.chaos.cases import Case
from tests.chaos.report import Outcome, Row
from tests.chaos.scene import Scene

HOPELESS = ("lost", "stuck")
SEARCH_SECONDS = 0.1
"""Between two looks for what is to be struck, among all processes."""


@dataclass(frozen=True)
class Reference:
    """The run that nothing disturbed."""

    weights: Mapping[str, str]
    """File -> SHA-256."""
    seconds: Mapping[str, float]
    """Stage -> how long it took."""


@dataclass
class Blow:
    """One strike, and what became of it."""

    stage: str
    moment: float = 0.0
    outcome: Outcome = "missed"
    before: set[str] = field(default_factory=set)
    orphans: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    note: str = ""


def walk(case: Case, scene: Scene, reference: Reference) -> list[Row]:
    """A row for each of the case's stages. Raises `TimeIsUp` when the suite's time is over."""
    hindrance = case.fault.prepare(scene)
    if hindrance:
        return [_row(case, Blow(stage, outcome="skipped", note=hindrance)) for stage in case.stages]
    scene.start()
    blows = _struck(case, scene, reference)
    _finish(scene, blows)
    _look_through(case, scene, blows)
    equal = _weights_equal(scene, reference, blows)
    return [_row(case, blow, equal) for blow in blows]


def _struck(case: Case, scene: Scene, reference: Reference) -> list[Blow]:
    """A blow for each stage, also for those that were never reached."""
    blows: list[Blow] = []
    for stage, share in zip(case.stages, case.moments, strict=True):
        if not _reached(scene, blows, stage):
            break
        blows.append(Blow(stage, share * reference.seconds[stage]))
        _strike(case, scene, blows[-1])
        _see_it_through(case, scene, blows[-1])
        if blows[-1].outcome in HOPELESS:
            break
    return blows + [Blow(stage) for stage in case.stages[len(blows) :]]


def _reached(scene: Scene, blows: list[Blow], stage: str) -> bool:
    """Go on to a stage; what stops the run meanwhile is the last blow's doing."""
    while not scene.reach(stage):
        if scene.state() == "COMPLETED" or not _goes_on(scene, blows):
            return False
    return True


def _finish(scene: Scene, blows: list[Blow]) -> None:
    """Go on to a true end; a run that has none, or not the right one, is somebody's doing."""
    struck = [blow for blow in blows if blow.outcome != "missed"]
    hopeless = any(blow.outcome in HOPELESS for blow in blows)
    while not hopeless:
        scene.until(scene.has_stopped)
        if scene.state() == "COMPLETED":
            return
        hopeless = not _goes_on(scene, struck)
    if not any(blow.outcome in HOPELESS for blow in blows):
        blows[-1].outcome, blows[-1].note = "lost", f"ended as {scene.state()} before it was struck"
    scene.clear()


def _goes_on(scene: Scene, blows: list[Blow]) -> bool:
    """Whether a run that has stopped may be tried once more: each blow has one retry."""
    if not blows:
        return False
    last = blows[-1]
    if not scene.has_ended():
        last.outcome, last.note = "stuck", f"{last.note} nobody works on it".strip()
        return False
    if last.outcome != "by itself":
        last.outcome, last.note = "lost", f"{last.note}, then as {scene.state()}"
        return False
    _retry(scene, last)
    return True


def _strike(case: Case, scene: Scene, blow: Blow) -> None:
    def ready() -> bool:
        return case.fault.ready(scene) or scene.has_stopped()

    scene.until(ready, SEARCH_SECONDS)
    blow.before = checks.kept(scene.store)
    time.sleep(blow.moment)
    scene.until(ready, SEARCH_SECONDS)
    blow.stage = scene.attempt.stage() or blow.stage
    if not scene.has_stopped():
        case.fault.strike(scene)
        blow.outcome = "by itself"


def _see_it_through(case: Case, scene: Scene, blow: Blow) -> None:
    """Until the stage is over, if need be by one retry."""
    if blow.outcome == "missed":
        return
    _wait_under(case, scene, blow)
    case.fault.lift(scene)
    while not scene.is_past(blow.stage) and scene.state() != "COMPLETED":
        if not _goes_on(scene, [blow]):
            return
        scene.until(lambda: scene.is_past(blow.stage) or scene.has_stopped())


def _wait_under(case: Case, scene: Scene, blow: Blow) -> None:
    """While the fault lasts, and then until something is to be seen of how it goes on."""
    lasts = float("inf") if case.fault.seconds is None else case.fault.seconds
    until = time.monotonic() + lasts

    def over() -> bool:
        if time.monotonic() > until:
            case.fault.lift(scene)
        return scene.is_past(blow.stage) or scene.has_stopped()

    scene.until(over)


def _retry(scene: Scene, blow: Blow) -> None:
    """With a look, before it goes on, at what the end of the run has left behind."""
    blow.outcome, blow.note = "one retry", f"ended as {scene.state()}"
    blow.orphans += scene.left()
    scene.until(scene.system.is_whole)
    blow.lost += checks.halves(scene.store)
    blow.lost += checks.versions_without_weights(scene.config, scene.store)
    scene.retry()


def _look_through(case: Case, scene: Scene, blows: list[Blow]) -> None:
    """The checks of a run that has ended; what they find is the last blow's."""
    case.fault.lift(scene)
    scene.until(scene.system.is_whole)
    last = blows[-1]
    last.orphans += scene.left()
    last.lost += checks.halves(scene.store)
    last.lost += checks.versions_without_weights(scene.config, scene.store)
    if scene.state() == "COMPLETED":
        last.lost += checks.contradictions(scene.config, scene.store)
    now = checks.kept(scene.store)
    for blow in blows:
        blow.lost += sorted(blow.before - now)


def _weights_equal(scene: Scene, reference: Reference, blows: list[Blow]) -> bool | None:
    """None where there are no weights."""
    try:
        weights = checks.weights_of(scene.store)
    except DreamBoothError as error:
        blows[-1].lost.append(str(error))
        return False
    return weights == reference.weights if weights else None


def _row(case: Case, blow: Blow, equal: bool | None = None) -> Row:
    return Row(
        fault=case.fault.name,
        stage=blow.stage,
        outcome=blow.outcome,
        weights_equal=equal,
        orphans=tuple(blow.orphans),
        lost=tuple(dict.fromkeys(blow.lost)),
        case=case.name,
        moment=round(blow.moment, 2),
        note=blow.note,
    )
