"""What the commands about registered models print: tables for people, JSON for machines."""

from collections.abc import Sequence

from dreambooth_core.cli.output import print_json, print_table
from dreambooth_core.config.results import PRIMARY
from dreambooth_core.registry.aliases import AliasState
from dreambooth_core.registry.diff import VersionDiff
from dreambooth_core.registry.lineage import Lineage
from dreambooth_core.registry.listing import ListedVersion

SHOWN = ("prompt_fidelity", "prior_drift")
"""Metrics with a column in the table of models, behind the first of what gates decide by."""


def show_models(models: Sequence[ListedVersion], as_json: bool) -> None:
    """A row per version."""
    if as_json:
        print_json([model.model_dump(mode="json") for model in models])
        return
    measured = {name for model in models for name in model.metrics}
    subject = [name for name in PRIMARY if name in measured][:1]
    names = [*subject, *(name for name in SHOWN if name in measured)]
    rows = [
        [
            f"{model.name}/{model.version}",
            "\n".join(f"@{alias}" for alias in model.aliases),
            model.verdict or "not judged",
            *(_number(model.metrics.get(name)) for name in names),
            model.when[:10],
        ]
        for model in models
    ]
    columns = [name.replace("_", " ") for name in names]
    print_table("", ("model", "aliases", "gate", *columns, "registered"), rows)


def show_aliases(name: str, state: AliasState, as_json: bool) -> None:
    """Who stands for a model after its aliases were moved."""
    if as_json:
        print_json({"name": name, "aliases": state.aliases})
        return
    for alias, version in state.aliases.items():
        print(f"{name}@{alias} is version {version}")


def show_lineage(lineage: Lineage, as_json: bool) -> None:
    """From the photos to the aliases, a line per fact."""
    if as_json:
        print_json(lineage.model_dump(mode="json"))
        return
    print_table(lineage.model, ("what", "digest", "what is known"), _lineage_rows(lineage))
    print("--json has the digests in full")


def show_difference(found: VersionDiff, as_json: bool) -> None:
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


def _lineage_rows(lineage: Lineage) -> list[list[str]]:
    """What, the start of its digest if it has one, and what is known of it."""
    base, training, verdict = lineage.base, lineage.training, lineage.verdict
    photos, classes, scores = lineage.instance, lineage.classes, lineage.scores
    rows = [["photo", _short(photo.sha256), photo.name] for photo in photos.images]
    rows.append(["instance images", _short(photos.digest), f"{len(photos.images)}"])
    for told in lineage.subjects:
        rows.append(["provenance", "", f"{told.subject}: {told.provenance or 'not said'}"])
        rows.append(["consent", "", f"{told.subject}: {told.consent or 'not said'}"])
    if classes:
        rows.append(["class images", _short(classes.digest), f"{len(classes.images)}"])
    rows.append(["base", _short(base.digest), f"{base.name} {base.revision or ''}".strip()])
    rows.append(["licence of the base", "", base.licence or "not said"])
    rows.append(["config", _short(lineage.config), ""])
    rows.append(["training", _short(training.key), f"{training.method}, {training.steps} steps"])
    rows.append(["code that trained", "", training.code or "not said"])
    rows += [["checkpoint", _short(at.digest), f"step {at.step}"] for at in training.checkpoints]
    rows.append(["weights", _short(training.weights), f"of step {training.chosen_step}"])
    shown = ", ".join(f"{name} {value:.3f}" for name, value in scores.metrics.items())
    rows.append(["scores", _short(scores.digest), shown])
    rows.append(["registered", "", f"{lineage.registered} by {lineage.by}"])
    rows.append(["run in MLflow", "", lineage.run_id])
    rows.append(["code that registered", "", lineage.code])
    if verdict:
        rows.append(["gate", _short(verdict.digest), f"{verdict.outcome}: {verdict.sentence}"])
    for change in lineage.changes:
        aliases = " ".join(
            f"@{alias}" for alias in change.state.aliases_of(lineage.model.split("/")[1])
        )
        said = f"{change.when} {change.action} by {change.by}: {aliases or 'no alias'}"
        rows.append(["aliases", "", f"{said} {change.reason}".strip()])
    return rows


def _short(digest: str) -> str:
    """Enough to tell it from others, as people read it."""
    return digest[:12]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
