"""`make chaos`: the real servers and runs on them, disturbed in every way and stage.

Writes `chaos.json` after each case. A list that is not complete, since its time was over, is gone
on with. Exit code 1 when something was lost, 75 when cases are left for the next time.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.chaos import checks, clock, disk, report
from tests.chaos.cases import Case, drawn
from tests.chaos.proxy import Proxy, misbehaving
from tests.chaos.report import Outcome, Row
from tests.chaos.scene import Scene, TimeIsUp
from tests.chaos.system import System, running
from tests.chaos.walk import Reference, walk

DOWN_SECONDS = 30.0
"""Kept back for stopping everything."""
LEFT_OVER = 75


def main() -> int:
    asked = _arguments()
    begun = time.monotonic()
    earlier = report.read(asked.out)
    seed, rows = _taken_up(earlier, asked.seed)
    print(f"seed {seed}", flush=True)
    done = {row.case for row in rows}
    cases = [case for case in drawn(seed, asked.only) if case.name not in done]
    deadline = begun + 60 * asked.minutes - DOWN_SECONDS
    with _folder(asked.folder) as folder:
        try:
            with running(folder, clock.built(folder)) as system:
                rows = _all(system, cases, rows, asked.out, seed, deadline)
        finally:
            disk.unmount_below(folder / "work")
    print(report.table(rows))
    return _verdict(rows)


def _all(
    system: System,
    cases: Sequence[Case],
    rows: list[Row],
    out: Path,
    seed: int,
    deadline: float,
) -> list[Row]:
    """The rows of all cases, written after each; those without time as not run."""
    with misbehaving(system.place.s3, seed) as proxy:
        reference = _undisturbed(system, proxy, deadline)
        for number, case in enumerate(cases):
            rows = rows + _one(system, case, proxy, reference, seed, deadline)
            left = [row for later in cases[number + 1 :] for row in _not_run(later, seed)]
            report.write(out, rows + left)
    return rows


def _one(
    system: System, case: Case, proxy: Proxy, reference: Reference, seed: int, deadline: float
) -> list[Row]:
    config = system.config(case.name, proxy.url if case.fault.by_proxy else "local")
    scene = Scene(system, config, proxy, deadline)
    began = time.monotonic()
    try:
        rows = walk(case, scene, reference)
    except TimeIsUp:
        rows = _not_run(case, seed)
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


def _not_run(case: Case, seed: int) -> list[Row]:
    return _rows(case, "not run", seed)


def _rows(case: Case, outcome: Outcome, seed: int) -> list[Row]:
    return [
        Row(fault=case.fault.name, stage=stage, outcome=outcome, case=case.name, seed=seed)
        for stage in case.stages
    ]


def _taken_up(earlier: Sequence[Row], seed: int | None) -> tuple[int, list[Row]]:
    """The seed, and the rows that an earlier call of that seed has; none of a complete list."""
    unfinished = any(row.outcome == "not run" for row in earlier)
    if unfinished and seed in (None, earlier[0].seed):
        return earlier[0].seed, [row for row in earlier if row.outcome != "not run"]
    return random.randrange(10**6) if seed is None else seed, []


def _verdict(rows: Sequence[Row]) -> int:
    if any(row.is_bad for row in rows):
        return 1
    return LEFT_OVER if any(row.outcome == "not run" for row in rows) else 0


@contextmanager
def _folder(asked: Path | None) -> Iterator[Path]:
    """The one asked for, which stays, or a temporary one."""
    if asked is not None:
        asked.mkdir(parents=True, exist_ok=True)
        yield asked.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        yield Path(name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="draws stages and moments; else a new one")
    parser.add_argument("--minutes", type=float, default=25.0, help="after which no case is begun")
    parser.add_argument("--out", type=Path, default=Path("chaos.json"))
    parser.add_argument("--only", default="", help="faults with this word in their name")
    parser.add_argument("--folder", type=Path, help="an empty one, kept, with all logs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
