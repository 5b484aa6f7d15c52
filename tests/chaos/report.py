"""What came of it: `chaos.json`, and a table for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from dreambooth_core.storage.records import Record
from dreambooth_core.storage.stores import written_beside

Outcome = Literal[
    "by itself",  # the run went on, or ended as it should
    "one retry",  # it ended, and its retry went on
    "lost",  # its retry did not go on either
    "stuck",  # it never ended
    "missed",  # the stage was over before it could be struck
    "skipped",  # not possible on this machine
    "not run",  # no time was left
]
SURVIVED = ("by itself", "one retry")


class Row(Record):
    """One fault in one stage of a run."""

    fault: str
    stage: str
    """The one that was under way when it struck."""
    outcome: Outcome
    weights_equal: bool | None = None
    """Whether the run's weights are, bit by bit, those of the undisturbed one; None without weights."""
    orphans: tuple[str, ...] = ()
    """The processes of the run that lived on after it."""
    lost: tuple[str, ...] = ()
    """What was in the store before and is not, or is not whole; what registry and store say differently."""
    case: str = ""
    seed: int = 0
    moment: float = 0.0
    """Seconds from the beginning of the stage that was aimed at."""
    note: str = ""

    @property
    def is_bad(self) -> bool:
        other = self.weights_equal is False
        none = self.weights_equal is None and self.outcome in SURVIVED
        hopeless = self.outcome in ("lost", "stuck")
        return hopeless or other or none or bool(self.orphans or self.lost)


_ROWS = TypeAdapter(list[Row])


def read(path: Path) -> list[Row]:
    """An earlier list; empty when there is none."""
    return _ROWS.validate_json(path.read_bytes()) if path.is_file() else []


def write(path: Path, rows: Sequence[Row]) -> None:
    """In one go: whoever reads it meanwhile sees the old list or the new one."""
    with written_beside(path) as unfinished:
        unfinished.write_bytes(_ROWS.dump_json([*rows], indent=1) + b"\n")


def table(rows: Sequence[Row]) -> str:
    """Markdown: a row each."""
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
