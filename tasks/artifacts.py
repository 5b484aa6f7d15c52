"""The report, and artifacts of a run in Prefect: plan, findings, summary, cost, verdict, card, gallery."""

from collections.abc import Callable, Sequence
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
from dreambooth_core.reports.markdown import (
    cost_rows,
    estimate_markdown,
    summary_markdown,
    verdict_markdown,
)
from dreambooth_core.reports.summary import StageResults, Summary
from dreambooth_core.storage.records import (
    CostEstimate,
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
    """Write the HTML report, or find the report of the same results."""
    from dreambooth_core.reports import report

    return report.write_report(config, open_store(config.storage), results, stages)


@stage("plan")
def publish_plan(config: Config, photos: IngestedPhotos) -> CostEstimate:
    """Publish the findings of the photos and the run's estimate."""
    from dreambooth_core.registry.estimate import estimate_cost

    estimate = estimate_cost(config, open_store(config.storage), photos.images)
    publish_findings(config, photos.validation.findings, photos.validation.unanswered)
    about = f"inputs, reuse and cost of {config.name}"
    publish(create_markdown_artifact, estimate_markdown(estimate), key="plan", description=about)
    return estimate


def publish_findings(config: Config, findings: Sequence[Finding], unanswered: int = 0) -> None:
    """Table of the findings, of accepted and of refused photos.

    `unanswered`: questions to the vision-language model without a usable answer.
    """
    none = [{"level": "none", "file": config.name, "measure": "no findings"}]
    rows = [finding.model_dump() for finding in findings]
    about = f"findings in the photos of {config.name}"
    if unanswered:
        about += f"; {unanswered} questions to {config.vision.model} were not answered"
    publish(create_table_artifact, rows or none, key="dataset", description=about)


@stage("show")
def publish_results(config: Config, summary: Summary, results: StageResults) -> None:
    """Publish summary, cost, verdict, model card and gallery of a run."""
    from dreambooth_core.registry.model_card import read_card
    from dreambooth_core.registry.register import alias_log_of

    store = open_store(config.storage)
    log, name = alias_log_of(config, store), summary.run_id
    about = f"metrics and artifacts of {name}"
    publish(create_markdown_artifact, summary_markdown(summary), key="summary", description=about)
    about = f"seconds spent and saved by {name}"
    publish(create_table_artifact, cost_rows(summary), key="cost", description=about)
    if results.verdict is not None:
        publish_verdict(name, results.verdict)
    if log is not None and summary.model is not None:
        card, about = read_card(log, summary.model.version), f"the card of {name}"
        publish(create_markdown_artifact, card, key="model-card", description=about)
    if results.intake and results.samples:
        sheet = gallery(store, results.intake.images, results.samples)
        about = f"photos and samples of {name}"
        publish(create_image_artifact, sheet, key="gallery", description=about)


def gallery(store: Store, photos: ImageSet, samples: SampleSet) -> str:
    """Photos and samples as one contact sheet, as a data URL: Prefect's page cannot read the store."""
    from dreambooth_core.data.contact_sheets import WEBP_SIDE, contact_sheet, data_url

    # without captions: all photos in the first row
    first = [photo.model_copy(update={"prompt": ""}) for photo in photos.images]
    return data_url(contact_sheet(store, [*first, *samples.images]), WEBP_SIDE, 150_000)


def publish(create: Callable[..., Any], *content: Any, **named: Any) -> None:
    """Create an artifact; an error of Prefect's server is logged and does not fail the run."""
    try:
        create(*content, **named)
    except Exception as error:
        get_run_logger().warning("artifact %s was not published: %s", named.get("key"), error)


def publish_verdict(name: str, verdict: Verdict) -> None:
    """Publish a version's verdict and comparisons."""
    text = verdict_markdown(name, verdict)
    about = f"candidate against {verdict.against}: {name}"
    publish(create_markdown_artifact, text, key="verdict", description=about)
