"""Results of the chaos suite: `chaos.json` and a Markdown table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from dreambooth_core.storage.records import Record
from dreambooth_core.storage.stores import written_beside

Outcome = Literal[
    "by itself",  # the run continued, or ended as expected
    "one retry",  # the run ended, and a retry continued it
    "lost",  # the retry failed too
    "stuck",  # the run never ended
    "missed",  # the stage was over before the fault
    "skipped",  # the fault is not possible on this machine
    "not run",  # no time left
]
SURVIVED = ("by itself", "one retry")


class Row(Record):
    """One fault in one stage of a run."""

    fault: str
    stage: str
    """Stage that was running at the fault."""
    outcome: Outcome
    weights_equal: bool | None = None
    """Whether the run's weights equal the undisturbed run's bit by bit; None without weights."""
    orphans: tuple[str, ...] = ()
    """Processes left running after the run."""
    lost: tuple[str, ...] = ()
    """Missing and damaged objects of the store, and contradictions between registry and store."""
    case: str = ""
    seed: int = 0
    moment: float = 0.0
    """Seconds between the start of the intended stage and the fault."""
    note: str = ""

    @property
    def is_bad(self) -> bool:
        different = self.weights_equal is False
        missing = self.weights_equal is None and self.outcome in SURVIVED
        failed = self.outcome in ("lost", "stuck")
        return failed or different or missing or bool(self.orphans or self.lost)


_ROWS = TypeAdapter(list[Row])


def read(path: Path) -> list[Row]:
    """Rows of an earlier report; empty if the file does not exist."""
    return _ROWS.validate_json(path.read_bytes()) if path.is_file() else []


def write(path: Path, rows: Sequence[Row]) -> None:
    """Replace the report atomically."""
    with written_beside(path) as unfinished:
        unfinished.write_bytes(_ROWS.dump_json([*rows], indent=1) + b"\n")


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    head = [
        "| fault | stage | outcome | weights equal | orphans | lost |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(_line, rows)])


def _line(row: Row) -> str:
    equal = {True: "yes", False: "**no**", None: "-"}[row.weights_equal]
    outcome = f"**{row.outcome}**" if row.is_bad else row.outcome
    cells = (row.fault, row.stage, outcome, equal, len(row.orphans), len(row.lost))
    return f"| {' | '.join(map(str, cells))} |"
