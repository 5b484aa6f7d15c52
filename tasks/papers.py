"""What people read: the report, and a note of it in Prefect."""

from prefect.artifacts import create_markdown_artifact

from dreambooth_core.config import Config
from dreambooth_core.records import Comparison, Document, Stage, Verdict
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


def publish_verdict(name: str, verdict: Verdict) -> None:
    """Show what the gate said of a version, metric by metric."""
    text = f"# {name}: {verdict.outcome}\n\n{verdict.sentence}\n\n{comparison_table(verdict)}"
    create_markdown_artifact(text, key="verdict", description=name)


def comparison_table(verdict: Verdict) -> str:
    """Candidate against champion, a metric a row, as the gate compared them."""
    rows = [
        f"| {one.metric.replace('_', ' ')} | {one.challenger:.3f} | {one.champion:.3f} "
        f"| {one.difference:+.3f}{_interval(one)} | {one.win_rate:.0%} |"
        for one in verdict.comparisons
    ]
    head = f"| metric | candidate | {verdict.against} | difference | images won |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def _interval(one: Comparison) -> str:
    return "" if one.low is None or one.high is None else f" ({one.low:+.3f} to {one.high:+.3f})"


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
