"""Model versions: what was trained, from what, how good it is; enough to sample from it again."""

import subprocess
from pathlib import Path
from typing import Any

import dreambooth_core
from dreambooth_core import tracking
from dreambooth_core.blobs import digest_json, put_record
from dreambooth_core.config import Config, Paths
from dreambooth_core.errors import ConfigError
from dreambooth_core.records import ImageSet, ModelVersion, Record, Scores, Weights
from dreambooth_core.sampling import base_digest
from dreambooth_core.sheets import contact_sheet
from dreambooth_core.stages import once
from dreambooth_core.storage import Store

CANDIDATE = "candidate"


class Found(Record):
    """A registered version, and what is needed to load it."""

    name: str
    version: str
    config: Config
    """As the version was trained, with `paths.work` of the caller."""
    weights_record: str
    """Key of its `Weights` in the store."""


def register(
    config: Config,
    store: Store,
    instance: ImageSet,
    classes: ImageSet | None,
    weights: Weights,
    scores: Scores,
) -> tuple[ModelVersion, bool]:
    """Log the run, register the version and give it the alias `candidate`.

    The same weights with the same scores find the same version again, which becomes the candidate
    once more if another has been in between. Raises `StageFailed` when MLflow does not answer.
    """
    inputs = {
        "name": config.name,
        "tracking": tracking.identity(config),
        "storage": store.uri,
        "instance": instance.digest,
        "classes": classes.digest if classes else None,
        "weights": weights.digest,
        "scores": scores.digest,
    }

    def make(key: str) -> ModelVersion:
        client = tracking.open_client(config)
        tags = _lineage(config, store, instance, classes, weights, scores)
        sets = {"instance_images": instance, **({"class_images": classes} if classes else {})}
        sheets = _sheets(store, instance, scores)
        entry = tracking.Entry(key, tags, weights, scores, sets, sheets)
        run = tracking.log_run(client, config, entry)
        version = _version(client, config.name, weights.uri, run, {**tags, tracking.KEY: key})
        return ModelVersion(name=config.name, version=version, aliases=(CANDIDATE,), run_id=run)

    version, reused = once(store, "register", inputs, ModelVersion, make)
    _become_candidate(config, store, version)
    return version, reused


def find_version(config: Config | None, work: Path, wanted: str) -> Found:
    """The version behind NAME (its candidate), NAME@alias or NAME/version.

    `config` says where MLflow is; without one it is the sqlite file under `work`. Raises
    `ConfigError` when there is no such version, or it was not registered by this project.
    """
    place = config or Config.model_validate(
        {"name": "x", "subject": {"images": ".", "class_noun": "x"}, "paths": {"work": work}}
    )
    if not place.tracking.uri and not (work / "mlflow.db").exists():
        raise ConfigError(f"no models are registered under {work}: name the right --work folder")
    found = _lookup(tracking.open_client(place), wanted)
    tags = found.tags
    if "dreambooth.config" not in tags:
        raise ConfigError(f"{wanted} was not registered by dreambooth run: it cannot be loaded")
    trained = Config.model_validate_json(tags["dreambooth.config"])
    return Found(
        name=found.name,
        version=str(found.version),
        config=trained.model_copy(update={"paths": Paths(work=work)}),
        weights_record=tags["dreambooth.weights_record"],
    )


def _lookup(client: Any, wanted: str) -> Any:
    from mlflow.exceptions import MlflowException

    name, _, version = wanted.partition("/")
    name, _, alias = name.partition("@")
    try:
        if version:
            return client.get_model_version(name, version)
        return client.get_model_version_by_alias(name, alias or CANDIDATE)
    except MlflowException as error:
        known = [model.name for model in client.search_registered_models(max_results=20)]
        raise ConfigError(
            f"no registered model {wanted}: use NAME, NAME@alias or NAME/version; "
            f"there is: {', '.join(known) or 'none'}"
        ) from error


def _lineage(
    config: Config,
    store: Store,
    instance: ImageSet,
    classes: ImageSet | None,
    weights: Weights,
    scores: Scores,
) -> dict[str, str]:
    record = f"models/{config.name}/{weights.digest}.json"
    put_record(store, record, weights)
    plain = config.model_dump(mode="json", exclude={"paths"})
    return {
        "dreambooth.config": config.model_dump_json(exclude={"paths"}),
        "dreambooth.config_digest": digest_json(plain),
        "dreambooth.family": config.model.family,
        "dreambooth.base": config.model.base,
        "dreambooth.base_revision": config.model.revision or "",
        "dreambooth.base_digest": base_digest(config),
        "dreambooth.storage": tracking.without_password(config.storage.uri),
        "dreambooth.instance_images": instance.uri,
        "dreambooth.instance_images_digest": instance.digest,
        "dreambooth.class_images": classes.uri if classes else "",
        "dreambooth.class_images_digest": classes.digest if classes else "",
        "dreambooth.weights": weights.uri,
        "dreambooth.weights_digest": weights.digest,
        "dreambooth.weights_record": record,
        "dreambooth.method": weights.method,
        "dreambooth.steps": str(weights.steps),
        "dreambooth.scores": scores.uri,
        "dreambooth.scores_digest": scores.digest,
        "dreambooth.code": f"{dreambooth_core.__version__} {_commit()}".strip(),
        **{f"dreambooth.metric.{name}": f"{value:.6f}" for name, value in scores.metrics.items()},
    }


def _version(client: Any, name: str, source: str, run: str, tags: dict[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for found in client.search_model_versions(f"name = '{name}'"):
        if found.tags.get(tracking.KEY) == tags[tracking.KEY]:
            return str(found.version)
    return str(client.create_model_version(name, source, run, tags=tags).version)


def _become_candidate(config: Config, store: Store, version: ModelVersion) -> None:
    """Point the alias here; a pointer in the store spares opening MLflow when it does already."""
    key = f"models/{version.name}/{CANDIDATE}"
    ours = f"{tracking.identity(config)} {version.version}".encode()
    if store.exists(key) and store.get(key) == ours:
        return
    client = tracking.open_client(config)
    client.set_registered_model_alias(version.name, CANDIDATE, version.version)
    store.put(key, ours)


def _sheets(store: Store, instance: ImageSet, scores: Scores) -> dict[str, bytes]:
    return {
        "instance_images.png": contact_sheet(store, instance.images),
        "tuned.png": contact_sheet(store, scores.samples.images),
        "base.png": contact_sheet(store, scores.base_samples.images),
        "class_tuned.png": contact_sheet(store, scores.class_samples.images),
        "class_base.png": contact_sheet(store, scores.base_class_samples.images),
    }


def _commit() -> str:
    """Commit of the working tree this runs from; empty for an installed copy."""
    home = Path(dreambooth_core.__file__).parent.parent
    if not (home / ".git").exists():
        return ""
    answer = subprocess.run(
        ["git", "-C", str(home), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip()
