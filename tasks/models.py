"""Tasks of a model: train, evaluate, register, gate, promote, sample."""

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
from tasks.stage import progress_artifact, stage


@stage("train", gpu=True)
def train_model(config: Config, instance: ImageSet) -> tuple[Weights, bool]:
    """Train in a child process, resumed from the last checkpoint; raises `Preempted`.

    The class images are read from the store, under keys of their inputs.
    """
    from dreambooth_core.training import stage as fit

    with progress_artifact("train") as progress:
        return fit.train(config, open_store(config.storage), instance, progress)


@stage("evaluate", gpu=True)
def evaluate_samples(config: Config, instance: ImageSet, weights: Weights) -> tuple[Scores, bool]:
    """Score the trained model and the untouched base with the same prompts and seeds."""
    from dreambooth_core.evaluation import evaluate

    with progress_artifact("evaluate") as progress:
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
    """Compare the candidate with the champion, or with the base if there is no champion."""
    from dreambooth_core.evaluation import gate
    from dreambooth_core.registry import promotion

    store = open_store(config.storage)
    rival = promotion.rival_of(config, store, weights)
    with progress_artifact("gate") as progress:
        return gate.judge(config, store, instance, weights, scores, rival, progress)


@stage("promote")
def promote_version(
    config: Config, version: ModelVersion, verdict: Verdict
) -> tuple[ModelVersion, bool]:
    """Record the verdict; set the alias `champion` if verdict and `gate.auto_promote` allow it."""
    from dreambooth_core.registry import promotion

    return promotion.apply_verdict(config, open_store(config.storage), version, verdict)


@stage("sample", gpu=True)
def generate_samples(config: Config, weights: Weights) -> tuple[SampleSet, bool]:
    """Draw the sample images of the run."""
    from dreambooth_core.diffusion import parallel_sampling

    with progress_artifact("sample") as progress:
        return parallel_sampling.sample(config, open_store(config.storage), weights, progress)
