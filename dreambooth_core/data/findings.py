"""What a check of the photos says, to people and to machines."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dreambooth_core.storage.records import Record

if TYPE_CHECKING:
    from rich.table import Table

Level = Literal["hard", "soft"]
FOLDER = "."
"""The file of a finding that is about the whole set."""
NAMED = 5
"""Hard findings that the sentence of a refusal spells out."""


class Finding(Record):
    """One thing that a check found."""

    level: Level
    """`hard` stops a run, `soft` warns."""
    file: str
    """Name inside the folder; `.` is the set as a whole."""
    check: str
    measure: str
    """What was found."""
    limit: str
    remedy: str


class Validation(Record):
    """All findings about a folder, and the photos that remain."""

    folder: str
    findings: tuple[Finding, ...]
    accepted: tuple[str, ...]
    """Names of the photos that count, copies counted once."""
    digest: str
    """SHA-256 over the accepted photos' decoded pixels, whatever their names and formats."""

    @property
    def refused(self) -> bool:
        return any(finding.level == "hard" for finding in self.findings)


def about(level: Level, path: Path, check: str, measure: str, limit: str, remedy: str) -> Finding:
    """A finding about one file."""
    return Finding(
        level=level,
        file=printable(path.name),
        check=check,
        measure=measure,
        limit=limit,
        remedy=remedy,
    )


def merged(validations: Sequence[Validation]) -> Validation:
    """One validation of several folders, whose names then stand before their files'."""
    if len(validations) == 1:
        return validations[0]
    findings, accepted = [], []
    for found in validations:
        place = Path(found.folder).name
        findings += [
            finding.model_copy(update={"file": f"{place}/{finding.file}"})
            for finding in found.findings
        ]
        accepted += [f"{place}/{name}" for name in found.accepted]
    digests = "".join(found.digest for found in validations)
    return Validation(
        folder=", ".join(found.folder for found in validations),
        findings=tuple(findings),
        accepted=tuple(accepted),
        digest=hashlib.sha256(digests.encode()).hexdigest(),
    )


def refusal(validation: Validation) -> str:
    """The hard findings as the sentence of a `DatasetRefused`."""
    hard = [finding for finding in validation.findings if finding.level == "hard"]
    clauses = [
        f"{'the set' if f.file == FOLDER else f.file}: {f.measure} (limit: {f.limit}; {f.remedy})"
        for f in hard[:NAMED]
    ]
    more = [f"and {len(hard) - NAMED} more"] if len(hard) > NAMED else []
    return f"the photos in {validation.folder} are refused - " + "; ".join(clauses + more)


def findings_table(validation: Validation) -> "Table":
    """The findings as a rich table for a terminal, hard ones first."""
    from rich.table import Table
    from rich.text import Text

    verdict = "refused" if validation.refused else "usable"
    title = f"{validation.folder}: {len(validation.accepted)} photos, {verdict}"
    table = Table(title=Text(title), title_justify="left")
    for heading in ("level", "file", "check", "found", "limit", "remedy"):
        table.add_column(heading, overflow="fold")
    for finding in sorted(validation.findings, key=lambda finding: finding.level):
        style = "red" if finding.level == "hard" else "yellow"
        cells = (finding.file, finding.check, finding.measure, finding.limit, finding.remedy)
        table.add_row(Text(finding.level, style), *(Text(cell) for cell in cells))
    if not validation.findings:
        table.add_row("", "", Text("nothing to object to"), "", "", "")
    return table


def printable(name: str) -> str:
    """A file name that may stand in a terminal and in JSON: other characters become escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in name
    )
