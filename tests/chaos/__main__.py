"""`make chaos`: real servers and runs, with every fault in every stage.

Writes `chaos.json` after each case, and resumes an incomplete one. Exit code 1 if something was lost,
75 if cases are left.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.chaos import report
from tests.chaos.cases import drawn
from tests.chaos.hands import PoolSettings, run_all
from tests.chaos.report import Row

DOWN_SECONDS = 30.0
"""Reserved for stopping the servers."""
LEFT_OVER = 75


def main() -> int:
    options = _arguments()
    begun = time.monotonic()
    earlier = report.read(options.out)
    seed, rows = _resumed(earlier, options.seed)
    print(f"seed {seed}", flush=True)
    done = {row.case for row in rows}
    cases = [case for case in drawn(seed, options.only) if case.name not in done]
    deadline = begun + 60 * options.minutes - DOWN_SECONDS
    with _folder(options.folder) as folder:
        pool = PoolSettings(folder, seed, deadline, options.side_by_side)
        rows = run_all(cases, rows, pool, options.out)
    print(report.table(rows))
    return _exit_code(rows)


def _resumed(earlier: Sequence[Row], seed: int | None) -> tuple[int, list[Row]]:
    """The seed, and the finished rows of an incomplete earlier report with it, if any."""
    unfinished = any(row.outcome == "not run" for row in earlier)
    if unfinished and seed in (None, earlier[0].seed):
        return earlier[0].seed, [row for row in earlier if row.outcome != "not run"]
    return random.randrange(10**6) if seed is None else seed, []


def _exit_code(rows: Sequence[Row]) -> int:
    if any(row.is_bad for row in rows):
        return 1
    return LEFT_OVER if any(row.outcome == "not run" for row in rows) else 0


@contextmanager
def _folder(path: Path | None) -> Iterator[Path]:
    """The given folder, which is kept, or a temporary one."""
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        yield path.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        yield Path(name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="of stages and moments; default: random")
    parser.add_argument("--minutes", type=float, default=25.0, help="no case starts after it")
    parser.add_argument("--side-by-side", type=int, default=2, help="number of concurrent runs")
    parser.add_argument("--out", type=Path, default=Path("chaos.json"))
    parser.add_argument("--only", default="", help="faults with this text in their name")
    parser.add_argument("--folder", type=Path, help="an empty folder for logs, kept")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
