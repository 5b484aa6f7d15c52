"""Printing on stdout: tables and JSON."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from dreambooth_core.vision.language.spending import Counts

UNWRAPPED = 10_000
"""Columns of the console for pipes and files, which have no line width."""


def print_json(document: Any) -> None:
    """Print a JSON document."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; cells are wrapped at the terminal's width, never truncated."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = stdout_console()
    if title:  # rich wraps a table's own title at the table's width
        console.print(Text(title, style="italic"))
    console.print(table)
    console.print()


def stdout_console() -> "Console":
    """Console as wide as the terminal; for pipes and files lines are not wrapped."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNWRAPPED
    return console


def requests_document(counts: "Counts | None", cost: float | None) -> dict[str, Any] | None:
    """Requests to a vision-language model as JSON; `cost` is None without known prices."""
    return None if counts is None else {**asdict(counts), "cost": cost}


def requests_line(counts: "Counts", cost: float | None) -> str:
    """Requests to a vision-language model in one line."""
    usage = f"{counts.usage.input} input and {counts.usage.output} output tokens"
    known = "unknown, no prices are set" if cost is None else f"{cost:.4f}"
    return f"{counts.requests} requests, {counts.cached} cached answers, {usage}, cost {known}"
