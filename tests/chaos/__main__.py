"""`make chaos`: the real servers and runs on them, disturbed in every way and stage.

Writes `chaos.json` after each case. A list that is not complete, since its time was over, is gone
on with. Exit code 1 when something was lost, 75 when cases are left for the next time.
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
from tests.chaos.hands import Hands, walk_all
from tests.chaos.report import Row

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
        hands = Hands(folder, seed, deadline, asked.side_by_side)
        rows = walk_all(cases, rows, hands, asked.out)
    print(report.table(rows))
    return _verdict(rows)


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
    parser.add_argument("--side-by-side", type=int, default=2, help="so many runs, on servers each")
    parser.add_argument("--out", type=Path, default=Path("chaos.json"))
    parser.add_argument("--only", default="", help="faults with this word in their name")
    parser.add_argument("--folder", type=Path, help="an empty one, kept, with all logs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
