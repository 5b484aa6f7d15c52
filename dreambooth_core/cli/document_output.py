"""Output of `dreambooth dataset card` and `dataset table`: tables or JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dreambooth_core.cli.output import print_json, print_table
from dreambooth_core.data.documents.cards import CheckedCard
from dreambooth_core.data.documents.tables import CheckedTable
from dreambooth_core.data.documents.text_search import TextCheck
from dreambooth_core.data.findings import printable
from dreambooth_core.vision.language.spending import Account


def show_card(
    checked: CheckedCard, path: Path, written: bool, account: Account | None, as_json: bool
) -> None:
    """One row per value of the card; `account` is None without a model."""
    if as_json:
        document = checked.model_dump(mode="json")
        print_json({"out": str(path), "written": written, **document, **_requests(account)})
        return
    _show_checks(checked.checks)
    print(f"{path} {'written' if written else 'checked'}; {_unread(checked.checks)}")
    _show_requests(account)


def show_table(checked: CheckedTable, account: Account, as_json: bool) -> None:
    """The table or the curves' points, then the texts that were not found."""
    if as_json:
        print_json({**checked.model_dump(mode="json"), **_requests(account)})
        return
    table = checked.table
    columns = [printable(one) for one in table.columns]
    if table.rows:
        print_table(printable(table.title), columns, [[*map(_cell, row)] for row in table.rows])
    for series in table.series:
        print_table(printable(series.name), ["x", "y"], [[*map(_cell, p)] for p in series.points])
    _show_checks([one for one in checked.checks if not one.read])
    print(_unread(checked.checks))
    _show_requests(account)


def _show_checks(checks: Sequence[TextCheck]) -> None:
    if checks:
        rows = [
            [
                printable(one.field),
                printable(one.value),
                "yes" if one.read else "no",
                printable(", ".join(one.missing)),
            ]
            for one in checks
        ]
        print_table("", ("field", "value", "read", "not found"), rows)


def _unread(checks: Sequence[TextCheck]) -> str:
    count = sum(not one.read for one in checks)
    return f"{count} of {len(checks)} values are not in the recognised text: compare them with the document"


def _cell(value: object) -> str:
    return (
        "" if value is None else f"{value:g}" if isinstance(value, float) else printable(str(value))
    )


def _requests(account: Account | None) -> dict[str, Any]:
    """The key `requests` of JSON output: counts and cost, null without a model."""
    if account is None:
        return {"requests": None}
    counts = account.counts
    return {"requests": {**asdict(counts), "cost": account.cost(counts.usage)}}


def _show_requests(account: Account | None) -> None:
    if account is not None:
        counts, cost = account.counts, account.cost(account.counts.usage)
        known = "unknown, no prices are set" if cost is None else f"{cost:.4f}"
        print(f"{counts.requests} requests, {counts.cached} cached answers, cost {known}")
