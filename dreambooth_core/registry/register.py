"""Registration of model versions in MLflow and the store, and their lookup.

A version has its inputs in MLflow's tags and in the store's `Provenance`. It is registered only when
the store has its weights.
"""

import json
import secrets
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dreambooth_core.config import Config, Paths
from dreambooth_core.config.credentials import without_password
from dreambooth_core.data.contact_sheets import contact_sheet
from dreambooth_core.digests import digest_json, digest_of
from dreambooth_core.errors import ConfigError, NotFound, StorageError
from dreambooth_core.registry import mlflow_model, mlflow_run, model_card
from dreambooth_core.registry.aliases import CANDIDATE, AliasChange, AliasLog, AliasState
from dreambooth_core.registry.provenance import Provenance, RunInputs, provenance_of, put_provenance
from dreambooth_core.storage.blobs import blob_key, put_blob
from dreambooth_core.storage.records import (
    PRIVATE,
    ImageSet,
    ModelVersion,
    Record,
    Scores,
    Weights,
    current_user,
    utc_now,
)
from dreambooth_core.storage.stage_cache import cached_stage, stage_key
from dreambooth_core.storage.stores import Store
from dreambooth_core.tracking import mlflow as tracking

REGISTRY = "dreambooth.registry"
"""Tag of a registered model: its unique id, set at creation (see `AliasLog.registry`)."""


class RegisteredModel(Record):
    """A registered version with what is needed to load it."""

    name: str
    version: str
    config: Config
    """Config of its training, with `paths.work`, `tracking` and `compute` of the caller."""
    weights_record: str
    """Key of its `Weights` in the store."""
    instance_uri: str | None = None
    """URI of its instance images in the store."""


def register(
    config: Config,
    store: Store,
    instance: ImageSet,
    classes: ImageSet | None,
    weights: Weights,
    scores: Scores,
) -> tuple[ModelVersion, bool]:
    """Complete the run, register the version and set its alias `candidate`.

    Equal weights, scores, licence, provenance and consent give the registered version again while
    MLflow has it; its alias is set again if it was moved. Raises `StageFailed` when MLflow is not
    reachable, `StorageError` when a file of the weights is missing in the store.
    """
    inputs = RunInputs(instance, classes, weights, scores)
    check_stored(store, weights)
    client, key = tracking.open_client(config), _key(config, store, inputs)
    log = open_alias_log(client, config, store)

    def make(_: str) -> ModelVersion:
        provenance = provenance_of(config, store, inputs)
        tags = {**_tags(config, provenance, inputs), tracking.KEY: key}
        run, model = mlflow_run.log_run(client, config, _entry(config, store, tags, inputs, client))
        made = {"run_id": run, "model_id": model}
        made["version"] = _version(client, config.name, run, model, tags)
        provenance = provenance.model_copy(update=made)
        put_provenance(log, provenance)
        model_card.publish(client, log, model_card.CardInputs(provenance, inputs))
        return ModelVersion(
            name=config.name, version=provenance.version, aliases=(CANDIDATE,), run_id=run
        )

    stage_inputs = {"registered": key, "registry": log.registry}
    good = partial(_is_registered, client, key)
    version, reused = cached_stage(store, "register", stage_inputs, ModelVersion, make, good)
    state = _become_candidate(config, log, version.version)
    return version.model_copy(update={"aliases": state.aliases_of(version.version)}), reused


def open_alias_log(client: Any, config: Config, store: Store) -> AliasLog:
    """The model's alias log; creates the registered model if MLflow has none."""
    from mlflow.exceptions import MlflowException

    name = config.name
    try:
        model = client.create_registered_model(name, tags={REGISTRY: secrets.token_hex(8)})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        model = client.get_registered_model(name)
    registry = model.tags.get(REGISTRY)
    if registry is None:  # created by another program
        registry = digest_of(f"{name} {model.creation_timestamp}".encode())[:16]
        client.set_registered_model_tag(name, REGISTRY, registry)
    store.put(_pointer(config), str(registry).encode())
    return AliasLog(store, name, str(registry))


def alias_log_of(config: Config, store: Store) -> AliasLog | None:
    """The model's alias log; None without a registered model. MLflow is queried only once per store."""
    try:
        return AliasLog(store, config.name, store.get(_pointer(config)).decode())
    except NotFound:
        client = tracking.open_client(config)
        names = client.search_registered_models(f"name = '{config.name}'", max_results=1)
        return open_alias_log(client, config, store) if names else None


def synced_state(config: Config, log: AliasLog) -> AliasState:
    """State of the alias log, after MLflow was synchronized with it if necessary."""
    if log.is_synced():
        return log.state
    return log.sync(tracking.open_client(config))


def find_version(config: Config | None, work: Path, wanted: str) -> RegisteredModel:
    """The version called NAME (its candidate), NAME@alias or NAME/version.

    `config` locates MLflow; without it, MLflow's sqlite file is in `work`. Raises `ConfigError` for
    an unknown version, and for one that this project did not register.
    """
    tracked = tracking_config(config, work)
    found = _lookup(tracking.open_client(tracked), wanted)
    tags = found.tags
    if "dreambooth.config" not in tags:
        raise ConfigError(f"{wanted} was not registered by dreambooth run: it cannot be loaded")
    trained = Config.model_validate_json(tags["dreambooth.config"])
    local = {"paths": Paths(work=work), "tracking": tracked.tracking, "compute": tracked.compute}
    return RegisteredModel(
        name=found.name,
        version=str(found.version),
        config=trained.model_copy(update=local),
        weights_record=tags["dreambooth.weights_record"],
        instance_uri=tags.get("dreambooth.instance_images"),
    )


def tracking_config(config: Config | None, work: Path) -> Config:
    """A config that locates MLflow; raises `ConfigError` when `work` has no database."""
    tracked = config or Config.model_validate(
        {"name": "x", "subject": {"images": ".", "class_noun": "x"}, "paths": {"work": work}}
    )
    if not tracking.server_of(tracked) and not (work / "mlflow.db").exists():
        raise ConfigError(f"no models are registered under {work}: name the right --work folder")
    return tracked


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
            f"known models: {', '.join(known) or 'none'}"
        ) from error


def check_stored(store: Store, weights: Weights) -> None:
    """Raises `StorageError` when the store lacks a file of the weights."""
    for name, blob in weights.files.items():
        found = store.stat(blob_key(blob))
        if found is None or found.size != blob.size:
            raise StorageError(
                f"{name} of the weights {weights.digest[:16]}... is not in {store.uri}, without which "
                f"no version can be used: delete {weights.uri} and train again"
            )


def _key(config: Config, store: Store, inputs: RunInputs) -> str:
    """Digest of everything that identifies a version, kept as a tag of the run and the version."""
    identity = {
        "name": config.name,
        "tracking": tracking.identity(config),
        "storage": store.uri,
        "instance": inputs.instance.digest,
        "classes": inputs.classes.digest if inputs.classes else None,
        "weights": inputs.weights.digest,
        "scores": inputs.scores.digest,
        "licence": config.model.licence,
        "permissions": [(subject.provenance, subject.consent) for subject in config.subjects],
        "format": 2,  # of the tags
    }
    return stage_key("register", identity)


def _is_registered(client: Any, key: str, version: ModelVersion) -> bool:
    """Whether MLflow has the version with this key, and its run."""
    known = tracking.none_if_missing(
        lambda: client.get_model_version(version.name, version.version)
    )
    own = known is not None and known.tags.get(tracking.KEY) == key
    return own and tracking.has_run(client, version.run_id)


def _entry(
    config: Config, store: Store, tags: dict[str, str], inputs: RunInputs, client: Any
) -> mlflow_run.RunEntry:
    return mlflow_run.RunEntry(
        key=tags[tracking.KEY],
        tags=tags,
        weights=inputs.weights,
        scores=inputs.scores,
        inputs=_datasets(config, store, inputs),
        grids=lambda: _grids(store, inputs),
        model=lambda run: mlflow_model.log_model(client, run, config, store, inputs.weights),
    )


def _tags(config: Config, provenance: Provenance, inputs: RunInputs) -> dict[str, str]:
    """Tags of the run and the version in MLflow."""
    weights, scores, classes = inputs.weights, inputs.scores, inputs.classes
    plain = config.model_dump(mode="json", exclude={"paths", "compute"})
    return {
        "dreambooth.config": config.model_dump_json(exclude=PRIVATE),
        "dreambooth.config_digest": digest_json(plain),
        "dreambooth.family": config.model.family,
        "dreambooth.base": config.model.base,
        "dreambooth.base_revision": config.model.revision or "",
        "dreambooth.base_digest": provenance.base_digest,
        "dreambooth.storage": without_password(config.storage.uri),
        "dreambooth.instance_images": inputs.instance.uri,
        "dreambooth.instance_images_digest": provenance.instance_digest,
        "dreambooth.class_images": classes.uri if classes else "",
        "dreambooth.class_images_digest": provenance.classes_digest or "",
        "dreambooth.weights": weights.uri,
        "dreambooth.weights_digest": weights.digest,
        "dreambooth.weights_record": provenance.weights,
        "dreambooth.method": weights.method,
        "dreambooth.steps": str(weights.steps),
        "dreambooth.scores": scores.uri,
        "dreambooth.scores_digest": scores.digest,
        "dreambooth.warnings": "\n".join(scores.warnings),
        "dreambooth.code": provenance.code,
        **{f"dreambooth.metric.{name}": f"{value:.6f}" for name, value in scores.metrics.items()},
    }


def _datasets(config: Config, store: Store, inputs: RunInputs) -> tuple[mlflow_run.RunDataset, ...]:
    """Photos, class images and evaluation prompts."""
    rules = config.evaluation
    plan = {
        "prompts": {config.subject.fill(prompt): kind for prompt, kind in rules.kinds.items()},
        "class_prompt": config.subject.fill(config.subject.class_prompt),
        "seeds": rules.seeds,
        "seed": rules.seed,
    }
    prompts = put_blob(store, json.dumps(plan, indent=1).encode())
    images = [
        mlflow_run.RunDataset(name, made.uri, made.digest, {"images": made.count})
        for name, made in inputs.sets.items()
    ]
    profile = {"prompts": len(rules.kinds), "seeds": rules.seeds}
    uri = f"{store.uri}/{blob_key(prompts)}"
    return (*images, mlflow_run.RunDataset("evaluation_prompts", uri, prompts.sha256, profile))


def _grids(store: Store, inputs: RunInputs) -> Iterator[tracking.ImageGrid]:
    """Contact sheets of the photos, and of base (step 0) and model (last step) on the same prompts."""
    scores, end = inputs.scores, inputs.weights.steps
    for name, step, images in (
        ("instance images", 0, inputs.instance),
        ("evaluation", 0, scores.base_samples),
        ("evaluation", end, scores.samples),
        ("class images", 0, scores.base_class_samples),
        ("class images", end, scores.class_samples),
    ):
        if images.images:
            yield tracking.ImageGrid(name, step, contact_sheet(store, images.images))


def _version(client: Any, name: str, run: str, model: str, tags: dict[str, str]) -> str:
    """Number of the version of this run with this key, created if missing."""
    for found in client.search_model_versions(f"name = '{name}'"):
        if (found.run_id, found.tags.get(tracking.KEY)) == (run, tags[tracking.KEY]):
            return str(found.version)
    source = client.get_logged_model(model).artifact_location
    # a sqlite registry does not keep `model_id`
    named = {**tags, "dreambooth.logged_model": model}
    return str(client.create_model_version(name, source, run, tags=named, model_id=model).version)


def _become_candidate(config: Config, log: AliasLog, version: str) -> AliasState:
    def propose(state: AliasState) -> AliasChange | None:
        if state.candidate == version:
            return None
        return AliasChange(action="register", version=version, by=current_user(), when=utc_now())

    log.append(propose)
    return synced_state(config, log)


def _pointer(config: Config) -> str:
    """Key under which the store keeps the registered model's id in this tracking server."""
    return f"models/{config.name}/registry-{digest_of(tracking.identity(config).encode())[:16]}"
