"""Invariants of store and registry after a disturbed run."""

import json
from collections import Counter
from typing import Any

from dreambooth_core.config import Config
from dreambooth_core.digests import digest_of
from dreambooth_core.errors import DreamBoothError, NotFound
from dreambooth_core.registry.aliases import CANDIDATE
from dreambooth_core.registry.register import alias_log_of, check_stored
from dreambooth_core.storage import checkpoint_manifests
from dreambooth_core.storage.blobs import Blob, get_blob, get_record
from dreambooth_core.storage.records import Weights
from dreambooth_core.storage.stores import Store
from dreambooth_core.tracking import mlflow as tracking

BLOBS = "blobs/sha256/"
MLFLOW = "mlflow/"
"""Prefix of MLflow's objects."""


def kept(store: Store) -> set[str]:
    """All keys except those of checkpoints, which a run may delete."""
    return {key for key in store.keys("") if "/checkpoints/" not in key}


def weights_of(store: Store) -> dict[str, str]:
    """Training's key and file name -> SHA-256 of the stored bytes, of all finished trainings.

    Raises `StorageError` for missing and damaged files.
    """
    found = {}
    for key in store.keys("runs/"):
        if key.count("/") == 2 and key.endswith("/result.json"):
            weights = Weights.model_validate_json(store.get(key))
            for name, blob in weights.files.items():
                found[f"{key} {name}"] = digest_of(get_blob(store, blob))
    return found


def incomplete(store: Store) -> list[str]:
    """Keys of damaged blobs and records, and of manifests whose checkpoints are incomplete."""
    keys = [key for key in store.keys("") if not key.startswith(MLFLOW)]
    return [key for key in keys if not _is_whole(store, key)]


def _is_whole(store: Store, key: str) -> bool:
    data = store.get(key)
    if key.startswith(BLOBS):
        return digest_of(data) == key.rpartition("/")[2]
    if not key.endswith(".json"):
        return True
    try:
        document = json.loads(data)
    except ValueError:
        return False
    if not key.endswith(f"/{checkpoint_manifests.MANIFEST}"):
        return True
    folder, files = key.rpartition("/")[0], document["files"]
    return all(_is_stored(store, f"{folder}/{name}", Blob(**files[name])) for name in files)


def _is_stored(store: Store, key: str, blob: Blob) -> bool:
    try:
        return digest_of(store.get(key)) == blob.sha256
    except NotFound:
        return False


def versions_without_weights(config: Config, store: Store) -> list[str]:
    """Registered versions of the run's model without their weights, a sentence each."""
    wrong = []
    for version in _versions(config):
        name = f"{config.name}/{version.version}"
        try:
            weights = get_record(store, version.tags["dreambooth.weights_record"], Weights)
            if weights is None:
                wrong.append(f"{name} has no record of its weights")
            else:
                check_stored(store, weights)
        except (DreamBoothError, LookupError) as error:
            wrong.append(f"{name}: {error}")
    return wrong


def contradictions(config: Config, store: Store) -> list[str]:
    """Differences between MLflow, alias log and store after a completed run, a sentence each."""
    client = tracking.open_client(config)
    versions = [str(version.version) for version in _versions(config)]
    if versions != ["1"]:
        return [f"{config.name} has the versions {versions} instead of one"]
    wrong = []
    log = alias_log_of(config, store)
    aliases = client.get_registered_model(config.name).aliases
    if log is None or log.state.aliases != aliases or aliases.get(CANDIDATE) != "1":
        wrong.append(f"MLflow says {aliases}, the log {log and log.state.aliases}")
    runs = client.search_runs([tracking.experiment_of(client, config)])
    trainings = Counter(run.data.tags.get(tracking.TRAINING) for run in runs)
    unfinished = [run.info.run_id for run in runs if run.info.status != "FINISHED"]
    if len(runs) != 1 or unfinished:
        wrong.append(f"runs in MLflow per training: {dict(trainings)}, not finished: {unfinished}")
    return wrong + [
        f"{name} has two points at one step" for run in runs for name in _doubled(client, run)
    ]


def _doubled(client: Any, run: Any) -> list[str]:
    """Curves with two points at one step, system metrics excluded."""
    names = [name for name in run.data.metrics if not name.startswith("system/")]
    steps = {
        name: [point.step for point in client.get_metric_history(run.info.run_id, name)]
        for name in names
    }
    return [name for name, found in steps.items() if len(found) != len(set(found))]


def _versions(config: Config) -> list[Any]:
    client = tracking.open_client(config)
    return [*client.search_model_versions(f"name = '{config.name}'")]
