"""One trial of the study: a training, ours or diffusers' script's, its evaluation, and its result file."""

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.config import Config, load_config
from dreambooth_core.data.ingest import ingest
from dreambooth_core.errors import ConfigError
from dreambooth_core.evaluation.evaluate import evaluate
from dreambooth_core.storage.records import Record, Weights
from dreambooth_core.storage.stores import Store, open_store
from dreambooth_core.training import class_images, spec, stage
from examples.small_world.study.arms import OURS, Question, Trial
from examples.small_world.study.peer import Peer, ScriptTraining, train_by_script
from examples.small_world.study.subjects import class_noun_of, make_photos

HERE = Path(__file__).parent


class Result(Record):
    """Content of a trial's result file."""

    arm: str
    subject: str
    seed: int
    weights: str
    """Digest."""
    plan: str
    """Digest of the evaluation plan."""
    metrics: dict[str, float]
    base_metrics: dict[str, float]
    reference: dict[str, float]
    seconds: float
    """Training and evaluation, when first made; the machine may have had other load."""
    made_by: dict[str, str]
    """The script's digest and its packages' versions; empty for our own arms."""


@dataclass(frozen=True)
class TrialContext:
    """Folders of the trials, and diffusers' script if given."""

    work: Path
    """Store, photos and local state; once deleted, all trials are trained again."""
    results: Path
    peer: Peer | None = None


def planned(questions: Iterable[Question]) -> list[Trial]:
    """All trials without repetition; all arms of one subject and seed before the next."""
    trials = [
        Trial(arm, subject, seed)
        for question in questions
        for seed in question.seeds
        for subject in question.subjects
        for arm in question.arms
    ]
    return list(dict.fromkeys(trials))


def file_of(results: Path, trial: Trial) -> Path:
    return results / trial.arm.name / f"{trial.subject}-{trial.seed}.json"


def read(results: Path, trial: Trial) -> Result | None:
    """The trial's result; None if it is missing."""
    return spec.read_record(file_of(results, trial), Result)


def train(trial: Trial, context: TrialContext) -> Weights:
    """The trial's weights, from the stage cache if stored.

    Raises `ConfigError` for an arm of diffusers' script without the script, and the stages' errors.
    """
    config = config_of(trial, context.work)
    store = open_store(config.storage)
    instance = ingest(config, store)[0].images
    if trial.arm.script is None:
        class_images.ensure_class_images(config, store, instance)
        weights, _ = stage.train(config, store, instance)
        _drop_local_state(store, context.work, weights)
        return weights
    if context.peer is None:
        raise ConfigError(f"the arm {trial.arm.name} needs diffusers' script: give --peer")
    with_prior = "--with_prior_preservation" in trial.arm.script
    classes = class_images.ensure_class_images(config, store, instance)[0] if with_prior else None
    training = ScriptTraining(config, instance, classes, trial.arm.script)
    return train_by_script(context.peer, store, training)


def make(trial: Trial, context: TrialContext) -> Result:
    """Train and evaluate, reusing stored stages, and write the trial's result file."""
    weights = train(trial, context)
    start = time.monotonic()
    config = config_of(trial, context.work)
    store = open_store(config.storage)
    # all arms are measured against the same five photos
    photos = ingest(config_of(trial._replace(arm=OURS), context.work), store)[0].images
    scores, _ = evaluate(config, store, photos, weights)
    _drop_local_state(store, context.work, weights)
    seconds = weights.seconds + time.monotonic() - start
    earlier = read(context.results, trial)
    if earlier is not None and earlier.weights == weights.digest:
        seconds = earlier.seconds
    result = Result(
        arm=trial.arm.name,
        subject=trial.subject,
        seed=trial.seed,
        weights=weights.digest,
        plan=scores.plan,
        metrics=scores.metrics,
        base_metrics=scores.base_metrics,
        reference=scores.reference,
        seconds=round(seconds, 1),
        made_by=context.peer.made_by() if context.peer and trial.arm.script is not None else {},
    )
    path = file_of(context.results, trial)
    path.parent.mkdir(parents=True, exist_ok=True)
    spec.write_record(path, result)
    return result


def config_of(trial: Trial, work: Path) -> Config:
    """`trial.yaml` with the arm's options, the trial's photos and the study's store."""
    photos = make_photos(work / "photos", trial.subject, trial.arm.photos)
    options = {
        "seed": trial.seed,
        "subject.images": photos,
        "subject.class_noun": class_noun_of(trial.subject),
        "paths.work": work,
        "storage.uri": (work.resolve() / "store").as_uri(),
    }
    return load_config(
        HERE / "trial.yaml",
        (*(f"{name}={value}" for name, value in options.items()), *trial.arm.options),
    )


def _drop_local_state(store: Store, work: Path, weights: Weights) -> None:
    """Delete checkpoints and local models: they would take ten times the space of the results."""
    shutil.rmtree(work / "runs" / weights.key, ignore_errors=True)
    shutil.rmtree(work / "models" / weights.digest, ignore_errors=True)
    for key in list(store.keys(f"runs/{weights.key}/checkpoints/")):
        store.delete(key)
