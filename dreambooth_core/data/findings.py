"""Findings of the photo checks: records, merging, refusal message, table."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dreambooth_core.storage.records import Record

if TYPE_CHECKING:
    from rich.table import Table

Level = Literal["hard", "soft"]
FOLDER = "."
"""`Finding.file` of a finding about the whole set."""
NAMED = 5
"""Hard findings listed in the message of a refusal."""


class Finding(Record):
    """A problem found by a check."""

    level: Level
    """`hard` stops a run, `soft` warns."""
    file: str
    """Name inside the folder; `.` for the whole set."""
    check: str
    measure: str
    """The found value."""
    limit: str
    remedy: str


class Validation(Record):
    """All findings about a folder, and the accepted photos."""

    folder: str
    findings: tuple[Finding, ...]
    accepted: tuple[str, ...]
    """Names of the accepted photos, without exact copies."""
    digest: str
    """SHA-256 over the accepted photos' decoded pixels, independent of names and formats."""
    unanswered: int = 0
    """Questions to the vision-language model without a usable answer; no finding follows from them."""

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
    """One validation of several folders, with `<folder>/` before their file names."""
    if len(validations) == 1:
        return validations[0]
    findings, accepted = [], []
    for found in validations:
        folder = Path(found.folder).name
        findings += [
            finding.model_copy(update={"file": f"{folder}/{finding.file}"})
            for finding in found.findings
        ]
        accepted += [f"{folder}/{name}" for name in found.accepted]
    digests = "".join(found.digest for found in validations)
    return Validation(
        folder=", ".join(found.folder for found in validations),
        findings=tuple(findings),
        accepted=tuple(accepted),
        digest=hashlib.sha256(digests.encode()).hexdigest(),
        unanswered=sum(found.unanswered for found in validations),
    )


def refusal(validation: Validation) -> str:
    """Message of a `DatasetRefused`: the first `NAMED` hard findings."""
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
        table.add_row("", "", Text("no findings"), "", "", "")
    return table


def printable(name: str) -> str:
    """A file name safe for terminals and JSON, with escapes for unprintable characters."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in name
    )
