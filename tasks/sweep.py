"""Trials of a sweep: planned, measured, chosen among, shown."""

from collections.abc import Sequence

from prefect.artifacts import create_markdown_artifact

from dreambooth_core.config import Config
from dreambooth_core.config.flow_parameters import Sweep
from dreambooth_core.storage.records import ImageSet, Weights
from dreambooth_core.storage.stores import open_store
from dreambooth_core.training.sweep import (
    SweepTrial,
    TrialScore,
    front,
    point_of,
    trials_of,
    winner,
)
from tasks.stage import progress_shown, stage


@stage("plan trials")
def plan_trials(sweep: Sweep, pinned: Config) -> tuple[SweepTrial, ...]:
    """All trials' configs, with photos that stay the same while they run; raises `ConfigError`."""
    return trials_of(sweep.model_copy(update={"config": pinned}))


@stage("measure trial", gpu=True)
def measure_trial(trial: SweepTrial, instance: ImageSet, weights: Weights) -> TrialScore:
    """By the development seeds, which the gate never sees."""
    from dreambooth_core.evaluation import evaluate
    from dreambooth_core.metrics import statistics

    config, store = trial.config, open_store(trial.config.storage)
    with progress_shown("evaluate") as progress:
        scores, _ = evaluate.evaluate(config, store, instance, weights, progress, seed_set="dev")
    return point_of(trial, weights, scores, statistics.rows_of(store, scores))


@stage("choose trial")
def choose_trial(sweep: Sweep, points: Sequence[TrialScore]) -> int:
    """Place of the trial that goes to the gate."""
    return winner(points, sweep.config.validation)


def publish_sweep(points: Sequence[TrialScore], best: int) -> None:
    """Show all trials, those that no other beats in everything, and the one that was chosen."""
    create_markdown_artifact(as_markdown(points, best), key="sweep")


def as_markdown(points: Sequence[TrialScore], best: int) -> str:
    """A row per trial: settings, subject fidelity, prompt fidelity, cost."""
    names, edge = list(points[0].settings), front(points)
    rows = [
        f"| {' | '.join(str(one.settings[name]) for name in names)} | {one.subject_fidelity:.3f} "
        f"| {one.prompt_fidelity:.3f} | {one.seconds:.0f} "
        f"| {'yes' if place in edge else ''} | {'yes' if place == best else ''} |"
        for place, one in enumerate(points)
    ]
    columns = [*names, "subject fidelity", "prompt fidelity", "seconds", "on the front", "chosen"]
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    note = "By the development seeds; the gate judges the chosen one with others."
    return "\n".join(["# Sweep", "", *head, *rows, "", note])
