"""What people read: the report, and a note of it in Prefect."""

from prefect.artifacts import create_markdown_artifact

from dreambooth_core.config import Config
from dreambooth_core.records import Document, Stage
from dreambooth_core.storage import open_store
from dreambooth_core.summary import Results, Summary
from tasks.stages import stage


@stage("report")
def write_report(
    config: Config, results: Results, stages: dict[str, Stage]
) -> tuple[Document, bool]:
    """Write the page, or find the one of the same results."""
    from dreambooth_core import report

    return report.write_report(config, open_store(config.storage), results, stages)


def publish_summary(summary: Summary) -> None:
    """Show the run's numbers and links among Prefect's artifacts."""
    create_markdown_artifact(as_markdown(summary), key="summary", description=summary.run_id)


def as_markdown(summary: Summary) -> str:
    """The summary as two tables and a list of links."""
    metrics = [
        f"| {name} | {value:.3f} | {summary.base_metrics.get(name, float('nan')):.3f} |"
        for name, value in summary.metrics.items()
    ]
    stages = [f"| {name} | {s.status} | {s.seconds:.1f} |" for name, s in summary.stages.items()]
    links = [f"- {name}: `{uri}`" for name, uri in summary.artifacts.items()]
    report = summary.artifacts.get("report")
    return "\n".join(
        [
            f"# {summary.run_id}: {summary.status}",
            *([f"[Open the report]({report})"] if report else []),
            "\n| metric | tuned | base |\n|---|---|---|",
            *metrics,
            "\n| stage | status | seconds |\n|---|---|---|",
            *stages,
            "",
            *links,
        ]
    )
