"""Tasks of a sweep: plan the trials, score them, choose one, publish the table."""

from collections.abc import Sequence

from prefect.artifacts import create_markdown_artifact

from dreambooth_core.config import Config
from dreambooth_core.config.flow_parameters import Sweep
from dreambooth_core.reports.markdown import sweep_markdown
from dreambooth_core.storage.records import ImageSet, TrialScore, Weights
from dreambooth_core.storage.stores import open_store
from dreambooth_core.training.sweep import (
    SweepTrial,
    best_trial,
    pareto_front,
    trial_score,
    trials_of,
)
from tasks.stage import progress_artifact, stage


@stage("plan trials")
def plan_trials(sweep: Sweep, pinned: Config) -> tuple[SweepTrial, ...]:
    """The trials' configs, with dataset versions pinned; raises `ConfigError`."""
    return trials_of(sweep.model_copy(update={"config": pinned}))


@stage("measure trial", gpu=True)
def measure_trial(trial: SweepTrial, instance: ImageSet, weights: Weights) -> TrialScore:
    """Score a trial with the development seeds, which the gate does not use."""
    from dreambooth_core.evaluation import evaluate
    from dreambooth_core.metrics import statistics

    config, store = trial.config, open_store(trial.config.storage)
    with progress_artifact("evaluate") as progress:
        scores, _ = evaluate.evaluate(config, store, instance, weights, progress, seed_set="dev")
    return trial_score(trial, weights, scores, statistics.rows_of(store, scores))


@stage("choose trial")
def choose_trial(sweep: Sweep, scores: Sequence[TrialScore]) -> int:
    """Index of the trial that the gate judges."""
    return best_trial(scores, sweep.config.validation)


def publish_sweep(scores: Sequence[TrialScore], best: int) -> None:
    """Markdown artifact `sweep`: all trials, the Pareto front and the chosen one."""
    create_markdown_artifact(sweep_markdown(scores, pareto_front(scores), best), key="sweep")
