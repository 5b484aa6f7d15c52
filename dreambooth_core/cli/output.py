"""How commands print on stdout: tables for people, JSON for machines."""

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

UNBROKEN = 10_000
"""Columns of a page that no line of ours fills."""


def print_json(document: Any) -> None:
    """One document."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A row per line, where the terminal is wide enough; nothing is ever cut off."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    paper = page()
    if title:  # a table's own is broken where the table ends
        paper.print(Text(title, style="italic"))
    paper.print(table)
    paper.print()


def page() -> "Console":
    """As wide as the terminal; a pipe or a file has no edge at which lines are to be broken."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNBROKEN
    return console
