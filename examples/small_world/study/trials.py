"""One trial: a training, ours or the peer's, its evaluation, and the file that says what came out."""

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
from examples.small_world.study.peer import Order, Peer, train_by_script
from examples.small_world.study.subjects import class_noun_of, make_photos

HERE = Path(__file__).parent


class Result(Record):
    """What a trial's file holds; every number of the study's page comes from one of them."""

    arm: str
    subject: str
    seed: int
    weights: str
    """Digest."""
    plan: str
    """Digest of the evaluation's plan."""
    metrics: dict[str, float]
    base_metrics: dict[str, float]
    reference: dict[str, float]
    seconds: float
    """Of training and evaluation when they were first made, on a machine with other work as well."""
    made_by: dict[str, str]
    """The script's digest and its environment's versions; empty for an arm of our own."""


@dataclass(frozen=True)
class Place:
    """Where trials are made and kept."""

    work: Path
    """Store, photos and local state: to be kept, or everything is trained again."""
    results: Path
    peer: Peer | None = None


def planned(questions: Iterable[Question]) -> list[Trial]:
    """Every trial once, all arms of a question for one subject and seed before the next."""
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
    """What was found; None for a trial that is missing."""
    return spec.read_record(file_of(results, trial), Result)


def train(trial: Trial, place: Place) -> Weights:
    """The trial's weights, made once.

    Raises `ConfigError` for an arm of the peer's without a peer, and what the stages raise.
    """
    config = config_of(trial, place.work)
    store = open_store(config.storage)
    instance = ingest(config, store)[0].images
    if trial.arm.script is None:
        class_images.ensure_class_images(config, store, instance)
        weights, _ = stage.train(config, store, instance)
        _drop_local_state(store, place.work, weights)
        return weights
    if place.peer is None:
        raise ConfigError(f"the arm {trial.arm.name} needs diffusers' script: give --peer")
    wants = "--with_prior_preservation" in trial.arm.script
    classes = class_images.ensure_class_images(config, store, instance)[0] if wants else None
    return train_by_script(place.peer, store, Order(config, instance, classes, trial.arm.script))


def make(trial: Trial, place: Place) -> Result:
    """Train and evaluate, or find what was made before, and write the trial's file."""
    weights = train(trial, place)
    start = time.monotonic()
    config = config_of(trial, place.work)
    store = open_store(config.storage)
    # whatever was trained on, the same five photos are what it is held against
    photos = ingest(config_of(trial._replace(arm=OURS), place.work), store)[0].images
    scores, _ = evaluate(config, store, photos, weights)
    _drop_local_state(store, place.work, weights)
    seconds = weights.seconds + time.monotonic() - start
    earlier = read(place.results, trial)
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
        made_by=place.peer.made_by() if place.peer and trial.arm.script is not None else {},
    )
    path = file_of(place.results, trial)
    path.parent.mkdir(parents=True, exist_ok=True)
    spec.write_record(path, result)
    return result


def config_of(trial: Trial, work: Path) -> Config:
    """`trial.yaml` with the arm's options, the trial's photos and the study's own store."""
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
    """Checkpoints would be ten times the rest: a trial is short, and its weights are stored."""
    shutil.rmtree(work / "runs" / weights.key, ignore_errors=True)
    shutil.rmtree(work / "models" / weights.digest, ignore_errors=True)
    for key in list(store.keys(f"runs/{weights.key}/checkpoints/")):
        store.delete(key)
