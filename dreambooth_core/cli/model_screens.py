"""What the commands about registered models print: tables for people, JSON for machines."""

import json
from collections.abc import Sequence
from typing import Any

from dreambooth_core.versions.aliases import Standing
from dreambooth_core.versions.differences import Difference
from dreambooth_core.versions.lineage import Lineage
from dreambooth_core.versions.views import Listed

SHOWN = ("identity", "subject_fidelity", "prompt_fidelity", "prior_drift")
"""Metrics with a column in the table of models, those that were measured."""


def show_models(models: Sequence[Listed], as_json: bool) -> None:
    """A row per version."""
    if as_json:
        print_json([model.model_dump(mode="json") for model in models])
        return
    names = [name for name in SHOWN if any(name in model.metrics for model in models)]
    rows = [
        [
            f"{model.name}/{model.version}",
            " ".join(f"@{alias}" for alias in model.aliases),
            model.verdict or "not judged",
            *(_number(model.metrics.get(name)) for name in names),
            model.when.replace("+00:00", "Z"),
        ]
        for model in models
    ]
    columns = [name.replace("_", " ") for name in names]
    print_table("", ("model", "aliases", "gate", *columns, "registered"), rows)


def show_standing(name: str, standing: Standing, as_json: bool) -> None:
    """Who stands for a model after its aliases were moved."""
    if as_json:
        print_json({"name": name, "aliases": standing.aliases})
        return
    for alias, version in standing.aliases.items():
        print(f"{name}@{alias} is version {version}")


def show_lineage(lineage: Lineage, as_json: bool) -> None:
    """From the photos to the aliases, a line per fact."""
    if as_json:
        print_json(lineage.model_dump(mode="json"))
        return
    print_table(lineage.model, ("what", "", "digest, or what is known"), _lineage_rows(lineage))


def show_difference(found: Difference, as_json: bool) -> None:
    """What differs, and the metrics beside each other."""
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    sides = (found.left, found.right)
    for title, both in (("Config", found.config), ("Data", found.data), ("Photos", found.photos)):
        rows = [[name, *(str(side or "") for side in pair)] for name, pair in both.items()]
        if rows:
            print_table(title, ("what differs", *sides), rows)
    metrics = [[name, *(_number(side) for side in pair)] for name, pair in found.metrics.items()]
    print_table("Metrics", ("metric", *sides), metrics)
    if found.why_not:
        print(f"Not compared image by image: {found.why_not}")
        return
    compared = [
        [
            one.metric,
            f"{one.difference:+.3f}",
            "" if one.low is None or one.high is None else f"{one.low:+.3f} to {one.high:+.3f}",
            f"{100 * one.win_rate:.0f} %",
            f"{one.p:.3f}",
            _number(one.smallest_effect),
        ]
        for one in found.comparisons
    ]
    columns = ("metric", "difference", "interval", "wins", "p", "would show from")
    print_table(f"{found.right} against {found.left}, image by image", columns, compared)


def print_json(document: Any) -> None:
    """One document on stdout."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _lineage_rows(lineage: Lineage) -> list[list[str]]:
    base, training, verdict = lineage.base, lineage.training, lineage.verdict
    rows = [["photo", photo.name, photo.sha256] for photo in lineage.instance.images]
    rows.append(["instance images", f"{len(lineage.instance.images)}", lineage.instance.digest])
    for told in lineage.subjects:
        rows.append(["provenance", told.subject, told.provenance or "not said"])
        rows.append(["consent", told.subject, told.consent or "not said"])
    if lineage.classes:
        rows.append(["class images", f"{len(lineage.classes.images)}", lineage.classes.digest])
    rows.append(["base", f"{base.name} {base.revision or ''}".strip(), base.digest])
    rows.append(["licence of the base", "", base.licence or "not said"])
    rows.append(["config", "", lineage.config])
    rows.append(["training", f"{training.method}, {training.steps} steps", training.key])
    rows.append(["code", "that trained", training.code or "not said"])
    rows += [["checkpoint", f"step {step.step}", step.digest] for step in training.checkpoints]
    rows.append(["weights", f"of step {training.chosen_step}", training.weights])
    shown = ", ".join(f"{name} {value:.3f}" for name, value in lineage.scores.metrics.items())
    rows.append(["scores", shown, lineage.scores.digest])
    rows.append(["registered", f"{lineage.registered} by {lineage.by}", f"run {lineage.run_id}"])
    rows.append(["code", "that registered", lineage.code])
    if verdict:
        rows.append(["gate", f"{verdict.outcome}: {verdict.sentence}", verdict.digest])
    for change in lineage.changes:
        aliases = " ".join(f"@{alias}" for alias in change.standing.of(lineage.model.split("/")[1]))
        said = f"{change.action} by {change.by}: {aliases or 'no alias'}"
        rows.append(["aliases", change.when, f"{said} {change.reason}".strip()])
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def print_table(title: str, columns: Sequence[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    Console().print(table)
