"""Markdown and table rows of runs, verdicts, sweeps, sampling jobs and clean-ups."""

from collections.abc import Iterable, Sequence

from dreambooth_core.reports.summary import Summary
from dreambooth_core.storage.garbage_collection import SweepResult
from dreambooth_core.storage.records import (
    Comparison,
    CostEstimate,
    PublishedJob,
    ShardResult,
    TrialScore,
    Verdict,
)


def summary_markdown(summary: Summary) -> str:
    """Metrics, stages and artifacts of a run."""
    metrics = [
        f"| {name} | {value:.3f} | {summary.base_metrics.get(name, float('nan')):.3f} |"
        for name, value in summary.metrics.items()
    ]
    stages = [f"| {name} | {s.status} | {s.seconds:.1f} |" for name, s in summary.stages.items()]
    # not as links: a browser opens no file of a disk
    artifacts = [f"- {name}: `{uri}`" for name, uri in summary.artifacts.items()]
    return "\n".join(
        [
            f"# {summary.run_id}: {summary.status}",
            *(f"\nWarning: {warning}" for warning in summary.warnings),
            "\n| metric | tuned | base |\n|---|---|---|",
            *metrics,
            "\n| stage | status | seconds |\n|---|---|---|",
            *stages,
            "",
            *artifacts,
        ]
    )


def cost_rows(summary: Summary) -> list[dict[str, str]]:
    """One row per stage, and their sum: seconds spent, and seconds saved by reuse."""
    seconds = {
        name: (
            stage.seconds,
            stage.cpu_seconds,
            stage.gpu_seconds,
            stage.saved.seconds if stage.saved else 0.0,
        )
        for name, stage in summary.stages.items()
    }
    rows = [_cost_row(name, one.status, seconds[name]) for name, one in summary.stages.items()]
    sums = [sum(column) for column in zip(*seconds.values(), strict=True)]
    return [*rows, _cost_row("all", summary.status, sums)]


def _cost_row(stage: str, status: str, seconds: Iterable[float]) -> dict[str, str]:
    columns = ("seconds", "cpu seconds", "gpu seconds", "saved seconds")
    cells = {name: f"{value:.1f}" for name, value in zip(columns, seconds, strict=False)}
    return {"stage": stage, "status": status, **cells}


def estimate_markdown(estimate: CostEstimate) -> str:
    """Digests of a run's inputs, what is reused, and the expected cost of the rest."""
    seconds = estimate.training_seconds
    training = _duration(seconds)
    if estimate.trained:
        training = f"reused, `{estimate.trained[:16]}`, {seconds or 0:.0f} s saved"
    stages = (
        estimate.priors_seconds,
        0.0 if estimate.trained else seconds,
        estimate.evaluation_seconds,
    )
    known = [one for one in stages if one is not None]
    total = _duration(sum(known)) if len(known) == len(stages) else _duration(None)
    class_images = f"{estimate.class_images}, {estimate.stored_class_images} of them reused"
    evaluated = f"{estimate.evaluated_images} images each of model and base"
    return "\n".join(
        [
            "| what | plan |",
            "|---|---|",
            f"| instance images | {estimate.photos}, `{estimate.instance[:16]}` |",
            f"| base | `{estimate.base[:16]}` |",
            f"| class images | {class_images}, {_duration(estimate.priors_seconds)} |",
            f"| training | {training} |",
            f"| evaluation | {evaluated}, {_duration(estimate.evaluation_seconds)} |",
            f"| total, at the champion's speed | {total} |",
        ]
    )


def _duration(seconds: float | None) -> str:
    return (
        "unknown time: no champion to compare with" if seconds is None else f"about {seconds:.0f} s"
    )


def verdict_markdown(name: str, verdict: Verdict) -> str:
    """Outcome, sentence and comparisons of a version's verdict."""
    return f"# {name}: {verdict.outcome}\n\n{verdict.sentence}\n\n{comparison_table(verdict)}"


def comparison_table(verdict: Verdict) -> str:
    """Candidate against champion, one metric per row, as the gate compared them."""
    if not verdict.comparisons:
        return "Nothing could be compared."
    rows = [
        f"| {one.metric.replace('_', ' ')}{' (advisory)' if one.advisory else ''} "
        f"| {one.challenger:.3f} | {one.champion:.3f} "
        f"| {one.difference:+.3f}{_interval(one)} | {one.win_rate:.0%} | {one.p:.3f} "
        f"| {'' if one.smallest_effect is None else f'{one.smallest_effect:.3f}'} |"
        for one in verdict.comparisons
    ]
    head = (
        f"| metric | candidate | {verdict.against} | difference | images won | p "
        "| smallest detectable effect |"
    )
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def _interval(one: Comparison) -> str:
    return "" if one.low is None or one.high is None else f" ({one.low:+.3f} to {one.high:+.3f})"


def sweep_markdown(scores: Sequence[TrialScore], front: Sequence[int], best: int) -> str:
    """One row per trial; `front` and `best` are indices of the Pareto front and the chosen trial."""
    names = list(scores[0].settings)
    rows = [
        f"| {' | '.join(str(one.settings[name]) for name in names)} | {one.subject_fidelity:.3f} "
        f"| {one.prompt_fidelity:.3f} | {one.seconds:.0f} "
        f"| {'yes' if index in front else ''} | {'yes' if index == best else ''} |"
        for index, one in enumerate(scores)
    ]
    columns = [*names, "subject fidelity", "prompt fidelity", "seconds", "on the front", "chosen"]
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    note = "Measured with the development seeds; the gate judges the chosen trial with other seeds."
    return "\n".join(["# Sweep", "", *head, *rows, "", note])


def job_markdown(shard: ShardResult, published: PublishedJob | None) -> str:
    """Images of the shard and, once the job is published, its files."""
    speed = f", {shard.images_per_second:.2f} images/s" if shard.made else ""
    done = f"{shard.made} images drawn, {shard.found} found in {shard.seconds:.1f} s{speed}."
    if published is None:
        return f"{done}\n\n{shard.missing} images are left to other shards."
    files = [f"- {name}: `{uri}`" for name, uri in published.files.items()]
    flags = f"{published.near_duplicates} near-duplicates, {published.unsafe} flagged as unsafe."
    title = f"# {published.job}: {published.count} images"
    return "\n".join([title, "", done, "", flags, "", *files])


def garbage_markdown(result: SweepResult) -> str:
    """Bytes that were or could be deleted, by kind, and bytes that are kept."""
    did = "deleted" if result.deleted else "could be deleted: nothing was, as `delete` is off"
    rows = [f"| {kind} | {size:,} |" for kind, size in result.kinds.items()]
    return "\n".join(
        [
            f"# {result.bytes:,} bytes in {result.objects:,} objects {did}",
            "",
            "| kind | bytes |",
            "|---|---|",
            *rows,
            "",
            f"{result.kept_bytes:,} bytes in {result.kept_objects:,} objects stay.",
        ]
    )
