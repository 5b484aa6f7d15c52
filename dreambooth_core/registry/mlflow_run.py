"""What completes the run of a registered model in MLflow: scores, inputs, images, the model itself.

MLflow points to what the store holds; its images are contact sheets for people, at a slider over
the steps: the untouched base stands at step 0.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dreambooth_core.config import Config
from dreambooth_core.storage.records import Scores, Weights
from dreambooth_core.tracking.learning_curves import curves_of
from dreambooth_core.tracking.mlflow import (
    KEY,
    TRAINING,
    ImageGrid,
    create_run,
    experiment_of,
    log_curves,
    log_grids,
    log_params,
    runs_with,
    set_status,
)

DIGEST = 36
"""Characters that MLflow takes of a data set's digest; the whole one is its tag."""


@dataclass(frozen=True)
class DatasetInput:
    """A data set that a run has used."""

    name: str
    uri: str
    digest: str
    """64 hex digits."""
    profile: Mapping[str, int]
    """What it consists of: `{"images": 4}`."""


@dataclass(frozen=True)
class RunEntry:
    """What a run says."""

    key: str
    """The same key finds the same run again."""
    tags: Mapping[str, str]
    weights: Weights
    scores: Scores
    inputs: tuple[DatasetInput, ...]
    grids: Callable[[], Iterable[ImageGrid]]
    """Asked for when they are needed, since they must be drawn."""
    model: Callable[[str], str]
    """Logs the model for the run with this id; the logged model's id."""


def log_run(client: Any, config: Config, entry: RunEntry) -> tuple[str, str]:
    """Complete the run of a trained model, or find the one with this key; its id and the model's.

    It is the training's own run, unless that one is of another registration already (another name,
    other scores): then it is a new one. What was cut off is completed.
    """
    experiment = experiment_of(client, config)
    for found in runs_with(client, experiment, KEY, entry.key):
        run = str(found.info.run_id)
        return run, entry.model(run)
    training = entry.weights.key or entry.weights.digest
    free = [
        found.info.run_id
        for found in runs_with(client, experiment, TRAINING, training)
        if KEY not in found.data.tags
    ]
    run = str(free[0]) if free else create_run(client, experiment, config, training)
    log_params(client, run, config.model_dump(mode="json"))
    log_curves(client, run, curves_of(entry.weights), {})
    _log_inputs(client, run, entry.inputs)
    log_grids(client, run, entry.grids())
    model = entry.model(run)
    _log_scores(client, run, model, entry)
    for name, value in {**entry.tags, "mlflow.runName": config.name, KEY: entry.key}.items():
        client.set_tag(run, name, value)
    set_status(client, run, "FINISHED")
    return run, model


def _log_scores(client: Any, run: str, model: str, entry: RunEntry) -> None:
    from mlflow.entities import Metric

    scores, now = entry.scores, int(time.time() * 1000)
    named = {
        **scores.metrics,
        **{f"base.{name}": value for name, value in scores.base_metrics.items()},
        **{f"photos.{name}": value for name, value in scores.reference.items()},
        **_ends("low", {name: one.low for name, one in scores.estimates.items()}),
        **_ends("high", {name: one.high for name, one in scores.estimates.items()}),
    }
    known = client.get_run(run).data.metrics
    metrics = [
        Metric(name, value, now, entry.weights.steps, model_id=model)
        for name, value in named.items()
        if name not in known
    ]
    client.log_batch(run, metrics=metrics)


def _ends(name: str, values: Mapping[str, float | None]) -> dict[str, float]:
    """One end of the scores' intervals, where there is one."""
    return {f"{name}.{metric}": value for metric, value in values.items() if value is not None}


def _log_inputs(client: Any, run: str, inputs: Iterable[DatasetInput]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = [
        DatasetInput(
            Dataset(
                one.name,
                one.digest[:DIGEST],
                _source_type(one.uri),
                json.dumps({"uri": one.uri}),
                profile=json.dumps(dict(one.profile)),
            ),
            [InputTag("mlflow.data.context", one.name), InputTag("dreambooth.digest", one.digest)],
        )
        for one in inputs
    ]
    client.log_inputs(run, found)


def _source_type(uri: str) -> str:
    """MLflow's word for who can fetch it."""
    scheme = uri.split("://", 1)[0]
    return {"file": "local"}.get(scheme, scheme)
