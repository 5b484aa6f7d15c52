"""Pool of processes that run the cases, each with its own servers."""

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
from tests.chaos.proxy import Proxy, faulty_proxy
from tests.chaos.report import Outcome, Row
from tests.chaos.scene import Scene, TimeIsUp
from tests.chaos.system import System, running
from tests.chaos.walk import Reference, run_case


@dataclass(frozen=True)
class PoolSettings:
    """Settings of the pool."""

    folder: Path
    """Parent of the processes' folders."""
    seed: int
    deadline: float
    """By `time.monotonic`: no case starts after it."""
    count: int
    """Number of processes."""


def run_all(cases: Sequence[Case], rows: list[Row], pool: PoolSettings, out: Path) -> list[Row]:
    """Run all cases and write the rows to `out` after each; cases without time are `not run`.

    Raises the error of a failed process after the others have finished.
    """
    left = {case.name: case for case in cases}
    with ProcessPoolExecutor(pool.count, get_context("spawn")) as executor, Manager() as shared:
        waiting, results, start = shared.Queue(), shared.Queue(), shared.Lock()
        for case in cases:
            waiting.put(case)
        numbers = range(pool.count)
        workers = [executor.submit(_work, pool, n, waiting, results, start) for n in numbers]
        while not (results.empty() and all(worker.done() for worker in workers)):
            with suppress(Empty):
                found: list[Row] = results.get(timeout=1)
                rows = rows + found
                del left[found[0].case]
                report.write(out, rows + _not_run(left.values(), pool.seed))
        for worker in workers:
            worker.result()
    return rows + _not_run(left.values(), pool.seed)


def _work(
    pool: PoolSettings,
    number: int,
    waiting: "Queue[Case]",
    results: "Queue[list[Row]]",
    start: AbstractContextManager[bool],
) -> None:
    """Run cases from `waiting` until the deadline; servers are started while holding `start`."""
    folder, seed = pool.folder / str(number), pool.seed
    folder.mkdir()
    try:
        with ExitStack() as stack:
            with start:  # concurrent starts would choose the same free ports
                system = stack.enter_context(running(folder, clock.built(folder)))
            proxy = stack.enter_context(faulty_proxy(system.layout.s3, seed))
            reference = _undisturbed(system, proxy, pool.deadline)
            with suppress(Empty):
                while time.monotonic() < pool.deadline:
                    case = waiting.get_nowait()
                    results.put(_one(system, case, proxy, reference, seed, pool.deadline))
    finally:
        disk.unmount_below(folder / "work")


def _one(
    system: System, case: Case, proxy: Proxy, reference: Reference, seed: int, deadline: float
) -> list[Row]:
    config = system.config(case.name, proxy.url if case.fault.by_proxy else "local")
    scene = Scene(system, config, proxy, deadline)
    began = time.monotonic()
    try:
        rows = run_case(case, scene, reference)
    except TimeIsUp:
        rows = _not_run([case], seed)
        scene.clear()
    except Exception as error:
        # an unexpected error of one case must not end the others
        rows = [row.model_copy(update={"note": repr(error)}) for row in _rows(case, "lost", seed)]
        scene.clear()
    outcomes = ", ".join(f"{row.stage}: {row.outcome}" for row in rows)
    print(f"{time.monotonic() - began:5.0f} s  {case.name}  {outcomes}", flush=True)
    return [row.model_copy(update={"seed": seed}) for row in rows]


def _undisturbed(system: System, proxy: Proxy, deadline: float) -> Reference:
    """Weights and stage durations of an undisturbed run, the reference of all others."""
    scene = Scene(system, system.config("undisturbed"), proxy, deadline)
    try:
        scene.start()
        scene.until(scene.has_ended)
    except TimeIsUp:
        raise SystemExit("no time left for the undisturbed run: raise --minutes") from None
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
