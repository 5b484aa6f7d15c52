"""All cases, by processes that take the next one each: one run alone fills no machine."""

import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from multiprocessing import Manager, get_context
from pathlib import Path
from queue import Empty, Queue

from tests.chaos import checks, clock, disk, report
from tests.chaos.cases import Case
from tests.chaos.proxy import Proxy, misbehaving
from tests.chaos.report import Outcome, Row
from tests.chaos.scene import Scene, TimeIsUp
from tests.chaos.system import System, running
from tests.chaos.walk import Reference, walk


@dataclass(frozen=True)
class Hands:
    """So many processes, each with servers of its own below the folder."""

    folder: Path
    seed: int
    deadline: float
    """By `time.monotonic`: no case is begun after it."""
    count: int


def walk_all(cases: Sequence[Case], rows: list[Row], hands: Hands, out: Path) -> list[Row]:
    """The rows of all cases, written after each; those without time as not run.

    Raises what kept a hand from working, when the others have done what was left.
    """
    left = {case.name: case for case in cases}
    with ProcessPoolExecutor(hands.count, get_context("spawn")) as pool, Manager() as shared:
        waiting, told, start = shared.Queue(), shared.Queue(), shared.Lock()
        for case in cases:
            waiting.put(case)
        numbers = range(hands.count)
        working = [pool.submit(_hand, hands, n, waiting, told, start) for n in numbers]
        while not (told.empty() and all(hand.done() for hand in working)):
            with suppress(Empty):
                found: list[Row] = told.get(timeout=1)
                rows = rows + found
                del left[found[0].case]
                report.write(out, rows + _not_run(left.values(), hands.seed))
        for hand in working:
            hand.result()
    return rows + _not_run(left.values(), hands.seed)


def _hand(
    hands: Hands,
    number: int,
    waiting: "Queue[Case]",
    told: "Queue[list[Row]]",
    start: AbstractContextManager[bool],
) -> None:
    """Cases from `waiting`, their rows to `told`, while there is time; servers come up under `start`."""
    folder, seed = hands.folder / str(number), hands.seed
    folder.mkdir()
    try:
        with ExitStack() as stack:
            with start:  # one after the other: both would take the same free ports
                system = stack.enter_context(running(folder, clock.built(folder)))
            proxy = stack.enter_context(misbehaving(system.place.s3, seed))
            reference = _undisturbed(system, proxy, hands.deadline)
            with suppress(Empty):
                while time.monotonic() < hands.deadline:
                    case = waiting.get_nowait()
                    told.put(_one(system, case, proxy, reference, seed, hands.deadline))
    finally:
        disk.unmount_below(folder / "work")


def _one(
    system: System, case: Case, proxy: Proxy, reference: Reference, seed: int, deadline: float
) -> list[Row]:
    config = system.config(case.name, proxy.url if case.fault.by_proxy else "local")
    scene = Scene(system, config, proxy, deadline)
    began = time.monotonic()
    try:
        rows = walk(case, scene, reference)
    except TimeIsUp:
        rows = _not_run([case], seed)
        scene.clear()
    except Exception as error:
        # one case that cannot be judged is no reason to leave the others out
        rows = [row.model_copy(update={"note": repr(error)}) for row in _rows(case, "lost", seed)]
        scene.clear()
    told = ", ".join(f"{row.stage}: {row.outcome}" for row in rows)
    print(f"{time.monotonic() - began:5.0f} s  {case.name}  {told}", flush=True)
    return [row.model_copy(update={"seed": seed}) for row in rows]


def _undisturbed(system: System, proxy: Proxy, deadline: float) -> Reference:
    """What every other run is held against."""
    scene = Scene(system, system.config("undisturbed"), proxy, deadline)
    try:
        scene.start()
        scene.until(scene.has_ended)
    except TimeIsUp:
        raise SystemExit("no time is left for the undisturbed run: give more --minutes") from None
    summary = json.loads((scene.config.paths.work / "last_run.json").read_text(encoding="utf-8"))
    if scene.state() != "COMPLETED":
        raise SystemExit(f"the undisturbed run ended as {scene.state()}: {summary['stages']}")
    wrong = checks.contradictions(scene.config, scene.store)
    if wrong:
        raise SystemExit(f"the undisturbed run left contradictions: {wrong}")
    seconds = {name: float(stage["seconds"]) for name, stage in summary["stages"].items()}
    print(f"{sum(seconds.values()):5.0f} s  undisturbed  {seconds}", flush=True)
    return Reference(checks.weights_of(scene.store), seconds)


def _not_run(cases: Iterable[Case], seed: int) -> list[Row]:
    return [row for case in cases for row in _rows(case, "not run", seed)]


def _rows(case: Case, outcome: Outcome, seed: int) -> list[Row]:
    return [
        Row(fault=case.fault.name, stage=stage, outcome=outcome, case=case.name, seed=seed)
        for stage in case.stages
    ]
