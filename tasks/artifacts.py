"""What people read: the report, and a note of it in Prefect."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.logging import get_run_logger

from dreambooth_core.config import Config
from dreambooth_core.data.findings import Finding
from dreambooth_core.data.ingest import IngestedPhotos
from dreambooth_core.registry.estimate import CostEstimate
from dreambooth_core.reports.summary import StageResults, Summary
from dreambooth_core.storage.records import (
    Comparison,
    Document,
    ImageSet,
    SampleSet,
    Stage,
    Verdict,
)
from dreambooth_core.storage.stores import Store, open_store
from tasks.stage import stage


@stage("report")
def write_report(
    config: Config, results: StageResults, stages: dict[str, Stage]
) -> tuple[Document, bool]:
    """Write the page, or find the one of the same results."""
    from dreambooth_core.reports import report

    return report.write_report(config, open_store(config.storage), results, stages)


@stage("plan")
def publish_plan(config: Config, intake: IngestedPhotos) -> CostEstimate:
    """Show what was found in the photos, and what the run is going to do."""
    from dreambooth_core.registry.estimate import estimate_cost

    planned = estimate_cost(config, open_store(config.storage), intake.images)
    publish_findings(config, intake.validation.findings)
    about = f"inputs, reuse and cost of {config.name}"
    shown(create_markdown_artifact, plan_as_markdown(planned), key="plan", description=about)
    return planned


def publish_findings(config: Config, findings: Sequence[Finding]) -> None:
    """Show what was found in the photos, whether they were taken or refused."""
    nothing = [{"level": "none", "file": config.name, "measure": "nothing was found"}]
    found = [finding.model_dump() for finding in findings]
    about = f"findings in the photos of {config.name}"
    shown(create_table_artifact, found or nothing, key="dataset", description=about)


@stage("show")
def publish_results(config: Config, summary: Summary, results: StageResults) -> None:
    """Show numbers, costs, what the gate said, the model's card, and pictures."""
    from dreambooth_core.registry.model_card import read_card
    from dreambooth_core.registry.register import book_of

    store = open_store(config.storage)
    book, name = book_of(config, store), summary.run_id
    about = f"numbers and places of {name}"
    shown(create_markdown_artifact, as_markdown(summary), key="summary", description=about)
    about = f"seconds spent and saved by {name}"
    shown(create_table_artifact, cost_rows(summary), key="cost", description=about)
    if results.verdict is not None:
        publish_verdict(name, results.verdict)
    if book is not None and summary.model is not None:
        card, about = read_card(book, summary.model.version), f"the card of {name}"
        shown(create_markdown_artifact, card, key="model-card", description=about)
    if results.intake and results.samples:
        sheet = gallery(store, results.intake.images, results.samples)
        about = f"photos and samples of {name}"
        shown(create_image_artifact, sheet, key="gallery", description=about)


def gallery(store: Store, photos: ImageSet, samples: SampleSet) -> str:
    """Photos and samples on one sheet, inside its own address: the page can fetch nothing here."""
    from dreambooth_core.data.contact_sheets import contact_sheet, data_url

    first = [photo.model_copy(update={"prompt": ""}) for photo in photos.images]
    return data_url(contact_sheet(store, [*first, *samples.images]))


def shown(create: Callable[..., Any], *content: Any, **named: Any) -> None:
    """Make an artifact; Prefect's busy database is no reason to lose a run for it."""
    try:
        create(*content, **named)
    except Exception as error:
        get_run_logger().warning("%s was not shown: %s", named.get("key"), error)


def cost_rows(summary: Summary) -> list[dict[str, str]]:
    """A stage a row, and all of them together: seconds spent, and those that were saved."""
    stages = summary.stages
    saved = {name: one.saved.seconds if one.saved else 0.0 for name, one in stages.items()}
    spent = {
        name: (one.seconds, one.cpu_seconds, one.gpu_seconds, saved[name])
        for name, one in stages.items()
    }
    rows = [_bill(name, one.status, spent[name]) for name, one in stages.items()]
    sums = [sum(column) for column in zip(*spent.values(), strict=True)]
    return [*rows, _bill("all", summary.status, sums)]


def _bill(stage: str, status: str, seconds: Iterable[float]) -> dict[str, str]:
    names = ("seconds", "cpu seconds", "gpu seconds", "saved seconds")
    spent = {name: f"{value:.1f}" for name, value in zip(names, seconds, strict=False)}
    return {"stage": stage, "status": status, **spent}


def plan_as_markdown(planned: CostEstimate) -> str:
    """What goes in, by digests, what is reused, and what the rest may cost."""
    seconds = planned.training_seconds
    training = _about(seconds)
    if planned.trained:
        training = f"reused, `{planned.trained[:16]}`, {seconds or 0:.0f} s saved"
    parts = (
        planned.priors_seconds,
        0.0 if planned.trained else seconds,
        planned.evaluation_seconds,
    )
    known = [part for part in parts if part is not None]
    whole = _about(sum(known)) if len(known) == len(parts) else _about(None)
    there = f"{planned.class_images}, {planned.class_images_there} of them reused"
    measured = f"{planned.evaluated_images} images each of model and base"
    return "\n".join(
        [
            "| what | plan |",
            "|---|---|",
            f"| instance images | {planned.photos}, `{planned.instance[:16]}` |",
            f"| base | `{planned.base[:16]}` |",
            f"| class images | {there}, {_about(planned.priors_seconds)} |",
            f"| training | {training} |",
            f"| evaluation | {measured}, {_about(planned.evaluation_seconds)} |",
            f"| in all, at the champion's pace | {whole} |",
        ]
    )


def _about(seconds: float | None) -> str:
    return "unknown time: no champion tells" if seconds is None else f"about {seconds:.0f} s"


def publish_verdict(name: str, verdict: Verdict) -> None:
    """Show what the gate said of a version, metric by metric."""
    text = f"# {name}: {verdict.outcome}\n\n{verdict.sentence}\n\n{comparison_table(verdict)}"
    about = f"candidate against {verdict.against}: {name}"
    shown(create_markdown_artifact, text, key="verdict", description=about)


def comparison_table(verdict: Verdict) -> str:
    """Candidate against champion, a metric a row, as the gate compared them."""
    if not verdict.comparisons:
        return "Nothing could be compared."
    rows = [
        f"| {one.metric.replace('_', ' ')} | {one.challenger:.3f} | {one.champion:.3f} "
        f"| {one.difference:+.3f}{_interval(one)} | {one.win_rate:.0%} | {one.p:.3f} "
        f"| {'' if one.smallest_effect is None else f'{one.smallest_effect:.3f}'} |"
        for one in verdict.comparisons
    ]
    head = (
        f"| metric | candidate | {verdict.against} | difference | images won | p "
        "| smallest effect that would show |"
    )
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def _interval(one: Comparison) -> str:
    return "" if one.low is None or one.high is None else f" ({one.low:+.3f} to {one.high:+.3f})"


def as_markdown(summary: Summary) -> str:
    """The summary as two tables and a list of places; a browser opens none that are on a disk."""
    metrics = [
        f"| {name} | {value:.3f} | {summary.base_metrics.get(name, float('nan')):.3f} |"
        for name, value in summary.metrics.items()
    ]
    stages = [f"| {name} | {s.status} | {s.seconds:.1f} |" for name, s in summary.stages.items()]
    links = [f"- {name}: `{uri}`" for name, uri in summary.artifacts.items()]
    return "\n".join(
        [
            f"# {summary.run_id}: {summary.status}",
            *(f"\nThe measuring itself is in doubt: {warning}" for warning in summary.warnings),
            "\n| metric | tuned | base |\n|---|---|---|",
            *metrics,
            "\n| stage | status | seconds |\n|---|---|---|",
            *stages,
            "",
            *links,
        ]
    )
