"""Weights: trained, measured, registered, sampled from."""

from dreambooth_core.config import Config
from dreambooth_core.storage.records import (
    ImageSet,
    ModelVersion,
    SampleSet,
    Scores,
    Verdict,
    Weights,
)
from dreambooth_core.storage.stores import open_store
from tasks.stage import progress_shown, stage


@stage("train", gpu=True)
def train_model(config: Config, instance: ImageSet) -> tuple[Weights, bool]:
    """Train in a process of its own; goes on from the last checkpoint. Raises `Preempted`.

    The class images lie in the store, where they are looked for by what decides them.
    """
    from dreambooth_core.training import stage as fit

    with progress_shown("train") as progress:
        return fit.train(config, open_store(config.storage), instance, progress)


@stage("evaluate", gpu=True)
def evaluate_samples(config: Config, instance: ImageSet, weights: Weights) -> tuple[Scores, bool]:
    """Measure the tuned model and the untouched base on the same seeds."""
    from dreambooth_core.evaluation import evaluate

    with progress_shown("evaluate") as progress:
        return evaluate.evaluate(config, open_store(config.storage), instance, weights, progress)


@stage("register")
def register_version(
    config: Config,
    instance: ImageSet,
    classes: ImageSet | None,
    weights: Weights,
    scores: Scores,
) -> tuple[ModelVersion, bool]:
    """Register the version with its lineage in MLflow, as the candidate."""
    from dreambooth_core.registry import register

    store = open_store(config.storage)
    return register.register(config, store, instance, classes, weights, scores)


@stage("gate", gpu=True)
def judge_candidate(
    config: Config, instance: ImageSet, weights: Weights, scores: Scores
) -> tuple[Verdict, bool]:
    """Decide whether the candidate is better than the champion, or without one than the base."""
    from dreambooth_core.evaluation import gate
    from dreambooth_core.registry import promotion

    store = open_store(config.storage)
    rival = promotion.rival_of(config, store, weights)
    with progress_shown("gate") as progress:
        return gate.judge(config, store, instance, weights, scores, rival, progress)


@stage("promote")
def promote_version(
    config: Config, version: ModelVersion, verdict: Verdict
) -> tuple[ModelVersion, bool]:
    """Move the alias `champion` when the gate says so and the config lets it."""
    from dreambooth_core.registry import promotion

    return promotion.settle(config, open_store(config.storage), version, verdict)


@stage("sample", gpu=True)
def generate_samples(config: Config, weights: Weights) -> tuple[SampleSet, bool]:
    """Draw the run's last batch of images."""
    from dreambooth_core.diffusion import parallel_sampling

    with progress_shown("sample") as progress:
        return parallel_sampling.sample(config, open_store(config.storage), weights, progress)
