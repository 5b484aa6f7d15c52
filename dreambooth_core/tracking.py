"""MLflow: one run per trained model, with parameters, losses, images, data sets and metrics.

MLflow points to what the store holds; the images in its own artifacts are thumbnails for people.
Importing it takes seconds, so it is imported only where a run is written or read.
"""

import fcntl
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.blobs import digest_of
from dreambooth_core.config import Config
from dreambooth_core.errors import StageFailed
from dreambooth_core.records import ImageSet, Scores, Weights

KEY = "dreambooth.key"
"""Tag with the digest of what decides a run; the same key finds the same run again."""


def tracking_uri(config: Config) -> str:
    """`tracking.uri`, or an absolute sqlite file under `paths.work`."""
    return config.tracking.uri or f"sqlite:///{(config.paths.work / 'mlflow.db').resolve()}"


def identity(config: Config) -> str:
    """Names the tracking store: its URI, and for our own file a word that is new when the file is.

    Without it, a deleted database would be believed to hold what was once registered in it.
    """
    if config.tracking.uri:
        return without_password(config.tracking.uri)
    database = config.paths.work / "mlflow.db"
    word = database.with_suffix(".id")
    with _locked(config.paths.work):
        if not database.exists() or not word.exists():
            word.write_text(secrets.token_hex(8))
            database.touch()
        return word.read_text()


def open_client(config: Config) -> Any:
    """An `MlflowClient` on tables that exist; raises `StageFailed` when the server does not answer.

    Three processes that create one sqlite file at once break it for good, hence the lock.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    import logging

    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = tracking_uri(config)
    try:
        with _locked(config.paths.work):
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
    except MlflowException as error:
        raise StageFailed(
            f"MLflow at {without_password(uri)} does not answer: check tracking.uri ({error})"
        ) from error
    return client


@dataclass(frozen=True)
class Entry:
    """What one run says."""

    key: str
    """The same key finds the same run again."""
    tags: Mapping[str, str]
    weights: Weights
    scores: Scores
    sets: Mapping[str, ImageSet]
    """Its inputs, by name."""
    images: Mapping[str, bytes]
    """PNGs by file name."""


def log_run(client: Any, config: Config, entry: Entry) -> str:
    """Write a finished run, or find the one with this key; returns its id.

    A run that was cut off is removed and written anew.
    """
    experiment = _experiment(client, config)
    for found in client.search_runs([experiment], f"tags.`{KEY}` = '{entry.key}'"):
        if found.info.status == "FINISHED":
            return str(found.info.run_id)
        client.delete_run(found.info.run_id)
    tags = {**entry.tags, KEY: entry.key}
    run = client.create_run(experiment, tags=tags, run_name=config.name).info.run_id
    _log_numbers(client, run, config, entry.weights, entry.scores)
    _log_inputs(client, run, entry.sets)
    with tempfile.TemporaryDirectory() as folder:
        for name, png in entry.images.items():
            (Path(folder) / name).write_bytes(png)
        client.log_artifacts(run, folder, "images")
    client.set_terminated(run, "FINISHED")
    return str(run)


def link_report(config: Config, run: str, uri: str, path: str) -> None:
    """Let the run point to its report, in its tags and in its description."""
    client = open_client(config)
    client.set_tag(run, "dreambooth.report", uri)
    client.set_tag(run, "mlflow.note.content", f"Report: `{path}`, stored at `{uri}`")


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"train": {"steps": 3}}` -> `{"train.steps": "3"}`; passwords inside URIs are left out."""
    found: dict[str, str] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = without_password(str(value))[:6000]
    return found


def without_password(uri: str) -> str:
    """`scheme://user:secret@host` -> `scheme://host`."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", uri)


def _log_numbers(client: Any, run: str, config: Config, weights: Weights, scores: Scores) -> None:
    from mlflow.entities import Metric, Param

    params = [Param(k, v) for k, v in flat(config.model_dump(mode="json")).items()]
    now = int(time.time() * 1000)
    named = {
        **scores.metrics,
        **{f"base.{k}": v for k, v in scores.base_metrics.items()},
        **{f"photos.{k}": v for k, v in scores.reference.items()},
    }
    metrics = [Metric(k, v, now, weights.steps) for k, v in named.items()]
    for step, instance_loss, class_loss in weights.losses:
        metrics.append(Metric("loss.instance", instance_loss, now, step))
        if class_loss is not None:
            metrics.append(Metric("loss.class", class_loss, now, step))
    for start in range(0, len(params), 100):
        client.log_batch(run, params=params[start : start + 100])
    for start in range(0, len(metrics), 1000):
        client.log_batch(run, metrics=metrics[start : start + 1000])


def _log_inputs(client: Any, run: str, sets: Mapping[str, ImageSet]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            # MLflow takes 36 characters of a digest; the whole one stands in the run's tags
            Dataset(name, made.digest[:36], "uri", made.uri, profile=f'{{"images": {made.count}}}'),
            [InputTag("mlflow.data.context", name)],
        )
        for name, made in sets.items()
    ]
    client.log_inputs(run, inputs)


def _experiment(client: Any, config: Config) -> str:
    """Its id; an experiment keeps its artifact folder for ever, so another store gets its own."""
    place = f"{config.storage.uri}/mlflow"
    name = config.tracking.experiment
    found = client.get_experiment_by_name(name)
    if found is not None and found.artifact_location != place:
        name = f"{name}-{digest_of(place.encode())[:8]}"
        found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(name, artifact_location=place))


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    work.mkdir(parents=True, exist_ok=True)
    with (work / "mlflow.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
