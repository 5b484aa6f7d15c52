"""Output of the commands on registered models: tables or JSON."""

from collections.abc import Sequence

from dreambooth_core.cli.output import print_json, print_table
from dreambooth_core.config.results import PRIMARY
from dreambooth_core.registry.aliases import AliasState
from dreambooth_core.registry.diff import VersionDiff
from dreambooth_core.registry.lineage import Lineage
from dreambooth_core.registry.listing import ListedVersion

SHOWN = ("prompt_fidelity", "prior_drift")
"""Metrics with a column in the table of models, after the first measured of `PRIMARY`."""


def show_models(models: Sequence[ListedVersion], as_json: bool) -> None:
    """One row per version."""
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
            model.verdict or "not evaluated",
            *(_number(model.metrics.get(name)) for name in names),
            model.when[:10],
        ]
        for model in models
    ]
    columns = [name.replace("_", " ") for name in names]
    print_table("", ("model", "aliases", "gate", *columns, "registered"), rows)


def show_aliases(name: str, state: AliasState, as_json: bool) -> None:
    """A model's aliases and their versions."""
    if as_json:
        print_json({"name": name, "aliases": state.aliases})
        return
    for alias, version in state.aliases.items():
        print(f"{name}@{alias} is version {version}")


def show_lineage(lineage: Lineage, as_json: bool) -> None:
    """One row per input and result, from the photos to the aliases."""
    if as_json:
        print_json(lineage.model_dump(mode="json"))
        return
    print_table(lineage.model, ("what", "digest", "details"), _lineage_rows(lineage))
    print("--json prints full digests")


def show_difference(found: VersionDiff, as_json: bool) -> None:
    """Differing config keys, data and photos, metrics of both, and paired comparisons."""
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    sides = (found.left, found.right)
    for title, both in (("Config", found.config), ("Data", found.data), ("Photos", found.photos)):
        rows = [[name, *(str(side or "") for side in pair)] for name, pair in both.items()]
        if rows:
            print_table(title, ("difference", *sides), rows)
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
    columns = ("metric", "difference", "interval", "wins", "p", "smallest effect")
    print_table(f"{found.right} against {found.left}, image by image", columns, compared)


def _lineage_rows(lineage: Lineage) -> list[list[str]]:
    """Name, short digest if any, and details."""
    base, training, verdict = lineage.base, lineage.training, lineage.verdict
    photos, classes, scores = lineage.instance, lineage.classes, lineage.scores
    rows = [["photo", _short(photo.sha256), photo.name] for photo in photos.images]
    rows.append(["instance images", _short(photos.digest), f"{len(photos.images)}"])
    for subject in lineage.subjects:
        rows.append(["provenance", "", f"{subject.subject}: {subject.provenance or 'not given'}"])
        rows.append(["consent", "", f"{subject.subject}: {subject.consent or 'not given'}"])
    if classes:
        rows.append(["class images", _short(classes.digest), f"{len(classes.images)}"])
    rows.append(["base", _short(base.digest), f"{base.name} {base.revision or ''}".strip()])
    rows.append(["licence of the base", "", base.licence or "not given"])
    rows.append(["config", _short(lineage.config), ""])
    rows.append(["training", _short(training.key), f"{training.method}, {training.steps} steps"])
    rows.append(["training code", "", training.code or "not recorded"])
    rows += [["checkpoint", _short(at.digest), f"step {at.step}"] for at in training.checkpoints]
    rows.append(["weights", _short(training.weights), f"of step {training.chosen_step}"])
    shown = ", ".join(f"{name} {value:.3f}" for name, value in scores.metrics.items())
    rows.append(["scores", _short(scores.digest), shown])
    rows.append(["registered", "", f"{lineage.registered} by {lineage.by}"])
    rows.append(["run in MLflow", "", lineage.run_id])
    rows.append(["registration code", "", lineage.code])
    if verdict:
        rows.append(["gate", _short(verdict.digest), f"{verdict.outcome}: {verdict.sentence}"])
    for change in lineage.changes:
        aliases = " ".join(
            f"@{alias}" for alias in change.state.aliases_of(lineage.model.split("/")[1])
        )
        entry = f"{change.when} {change.action} by {change.by}: {aliases or 'no alias'}"
        rows.append(["aliases", "", f"{entry} {change.reason}".strip()])
    return rows


def _short(digest: str) -> str:
    """The first 12 hex digits."""
    return digest[:12]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
