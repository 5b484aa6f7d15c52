"""The MLflow run of a registered model: params, scores, datasets, contact sheets, logged model.

MLflow holds references into the store. Contact sheets are logged by step; step 0 is the base.
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
"""Characters of a dataset's digest in MLflow; the whole digest is a tag."""


@dataclass(frozen=True)
class RunDataset:
    """A dataset that a run used."""

    name: str
    uri: str
    digest: str
    """64 hex digits."""
    profile: Mapping[str, int]
    """Counts: `{"images": 4}`."""


@dataclass(frozen=True)
class RunEntry:
    """Contents of a registered model's run."""

    key: str
    """Identifies the run: the same key gives the same run."""
    tags: Mapping[str, str]
    weights: Weights
    scores: Scores
    inputs: tuple[RunDataset, ...]
    grids: Callable[[], Iterable[ImageGrid]]
    """Makes the contact sheets, for a new run only."""
    model: Callable[[str], str]
    """Run id -> logs the model for that run -> id of the logged model."""


def log_run(client: Any, config: Config, entry: RunEntry) -> tuple[str, str]:
    """Complete the run of a trained model, or find the run with this key; ids of run and model.

    The training's own run is used, or a new one if that run has been registered under another name
    or with other scores. An interrupted call is completed.
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
    """Bounds of the scores' intervals, without missing ones."""
    return {f"{name}.{metric}": value for metric, value in values.items() if value is not None}


def _log_inputs(client: Any, run: str, inputs: Iterable[RunDataset]) -> None:
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
    """MLflow's name of the URI's source type."""
    scheme = uri.split("://", 1)[0]
    return {"file": "local"}.get(scheme, scheme)
