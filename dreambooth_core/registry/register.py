"""Model versions: what was trained, from what, how good it is; enough to draw with it again.

A version says in MLflow, by its tags, and in the store, by its `Provenance`, what it comes from. There is
none without its weights: they are looked for in the store before it is made.
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
"""Tag of a registered model, made with it: names it for good (see `aliases.Book`)."""


class RegisteredModel(Record):
    """A registered version, and what is needed to load it."""

    name: str
    version: str
    config: Config
    """As the version was trained, with `paths.work`, `tracking` and `compute` of the caller."""
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
    """Complete the run, register the version and give it the alias `candidate`.

    The same weights with the same scores, and the same word on licence, provenance and consent, find
    the same version again, as long as MLflow has it; it becomes the candidate once more if another
    has been in between. Raises `StageFailed` when MLflow does not answer, and `StorageError` when
    the store lacks a file of the weights.
    """
    found = RunInputs(instance, classes, weights, scores)
    check_stored(store, weights)
    client, key = tracking.open_client(config), _key(config, store, found)
    book = open_book(client, config, store)

    def make(_: str) -> ModelVersion:
        origin = provenance_of(config, store, found)
        tags = {**_tags(config, origin, found), tracking.KEY: key}
        run, model = mlflow_run.log_run(client, config, _entry(config, store, tags, found, client))
        made = {"run_id": run, "model_id": model}
        made["version"] = _version(client, config.name, run, model, tags)
        origin = origin.model_copy(update=made)
        put_provenance(book, origin)
        model_card.publish(client, book, model_card.CardInputs(origin, found))
        return ModelVersion(
            name=config.name, version=origin.version, aliases=(CANDIDATE,), run_id=run
        )

    inputs = {"registered": key, "registry": book.registry}
    good = partial(_is_there, client, key)
    version, reused = cached_stage(store, "register", inputs, ModelVersion, make, good)
    standing = _become_candidate(config, book, version.version)
    return version.model_copy(update={"aliases": standing.of(version.version)}), reused


def open_book(client: Any, config: Config, store: Store) -> AliasLog:
    """The log of the model's aliases; the registered model is made if there is none."""
    from mlflow.exceptions import MlflowException

    name = config.name
    try:
        made = client.create_registered_model(name, tags={REGISTRY: secrets.token_hex(8)})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        made = client.get_registered_model(name)
    word = made.tags.get(REGISTRY)
    if word is None:  # somebody else's model
        word = digest_of(f"{name} {made.creation_timestamp}".encode())[:16]
        client.set_registered_model_tag(name, REGISTRY, word)
    store.put(_pointer(config), str(word).encode())
    return AliasLog(store, name, str(word))


def book_of(config: Config, store: Store) -> AliasLog | None:
    """The same where there is a registered model; MLflow is asked once, then the store knows."""
    try:
        return AliasLog(store, config.name, store.get(_pointer(config)).decode())
    except NotFound:
        client = tracking.open_client(config)
        names = client.search_registered_models(f"name = '{config.name}'", max_results=1)
        return open_book(client, config, store) if names else None


def followed(config: Config, book: AliasLog) -> AliasState:
    """Who stands for the model, once MLflow says the same as the log; it is asked only if need be."""
    if book.is_followed():
        return book.standing
    return book.follow(tracking.open_client(config))


def find_version(config: Config | None, work: Path, wanted: str) -> RegisteredModel:
    """The version behind NAME (its candidate), NAME@alias or NAME/version.

    `config` says where MLflow is; without one it is the sqlite file under `work`. Raises
    `ConfigError` when there is no such version, or it was not registered by this project.
    """
    place = tracking_place(config, work)
    found = _lookup(tracking.open_client(place), wanted)
    tags = found.tags
    if "dreambooth.config" not in tags:
        raise ConfigError(f"{wanted} was not registered by dreambooth run: it cannot be loaded")
    trained = Config.model_validate_json(tags["dreambooth.config"])
    ours = {"paths": Paths(work=work), "tracking": place.tracking, "compute": place.compute}
    return RegisteredModel(
        name=found.name,
        version=str(found.version),
        config=trained.model_copy(update=ours),
        weights_record=tags["dreambooth.weights_record"],
    )


def tracking_place(config: Config | None, work: Path) -> Config:
    """A config that says where MLflow is; raises `ConfigError` when there is none under `work`."""
    place = config or Config.model_validate(
        {"name": "x", "subject": {"images": ".", "class_noun": "x"}, "paths": {"work": work}}
    )
    if not tracking.server_of(place) and not (work / "mlflow.db").exists():
        raise ConfigError(f"no models are registered under {work}: name the right --work folder")
    return place


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


def check_stored(store: Store, weights: Weights) -> None:
    """Raises `StorageError` when the store lacks a file of the weights."""
    for name, blob in weights.files.items():
        found = store.stat(blob_key(blob))
        if found is None or found.size != blob.size:
            raise StorageError(
                f"{name} of the weights {weights.digest[:16]}... is not in {store.uri}, and no "
                f"version goes without its weights: delete {weights.uri} and train again"
            )


def _key(config: Config, store: Store, found: RunInputs) -> str:
    """Of all that a version says, in whatever registry: its run and it have it as a tag."""
    inputs = {
        "name": config.name,
        "tracking": tracking.identity(config),
        "storage": store.uri,
        "instance": found.instance.digest,
        "classes": found.classes.digest if found.classes else None,
        "weights": found.weights.digest,
        "scores": found.scores.digest,
        "licence": config.model.licence,
        "told": [(subject.provenance, subject.consent) for subject in config.subjects],
        "form": 2,  # of what is written
    }
    return stage_key("register", inputs)


def _is_there(client: Any, key: str, version: ModelVersion) -> bool:
    """Whether MLflow still has the version, and under its number no other one."""
    known = tracking.none_if_missing(
        lambda: client.get_model_version(version.name, version.version)
    )
    own = known is not None and known.tags.get(tracking.KEY) == key
    return own and tracking.has_run(client, version.run_id)


def _entry(
    config: Config, store: Store, tags: dict[str, str], found: RunInputs, client: Any
) -> mlflow_run.RunEntry:
    return mlflow_run.RunEntry(
        key=tags[tracking.KEY],
        tags=tags,
        weights=found.weights,
        scores=found.scores,
        inputs=_inputs(config, store, found),
        grids=lambda: _grids(store, found),
        model=lambda run: mlflow_model.log_model(client, run, config, store, found.weights),
    )


def _tags(config: Config, origin: Provenance, found: RunInputs) -> dict[str, str]:
    """What the run and the version say of themselves in MLflow."""
    weights, scores, classes = found.weights, found.scores, found.classes
    plain = config.model_dump(mode="json", exclude={"paths", "compute"})
    return {
        "dreambooth.config": config.model_dump_json(exclude=PRIVATE),
        "dreambooth.config_digest": digest_json(plain),
        "dreambooth.family": config.model.family,
        "dreambooth.base": config.model.base,
        "dreambooth.base_revision": config.model.revision or "",
        "dreambooth.base_digest": origin.base_digest,
        "dreambooth.storage": without_password(config.storage.uri),
        "dreambooth.instance_images": found.instance.uri,
        "dreambooth.instance_images_digest": origin.instance_digest,
        "dreambooth.class_images": classes.uri if classes else "",
        "dreambooth.class_images_digest": origin.classes_digest or "",
        "dreambooth.weights": weights.uri,
        "dreambooth.weights_digest": weights.digest,
        "dreambooth.weights_record": origin.weights,
        "dreambooth.method": weights.method,
        "dreambooth.steps": str(weights.steps),
        "dreambooth.scores": scores.uri,
        "dreambooth.scores_digest": scores.digest,
        "dreambooth.warnings": "\n".join(scores.warnings),
        "dreambooth.code": origin.code,
        **{f"dreambooth.metric.{name}": f"{value:.6f}" for name, value in scores.metrics.items()},
    }


def _inputs(config: Config, store: Store, found: RunInputs) -> tuple[mlflow_run.DatasetInput, ...]:
    """Photos, class images, and the prompts that the model is measured on."""
    rules = config.evaluation
    asked = {
        "prompts": {config.subject.fill(prompt): kind for prompt, kind in rules.kinds.items()},
        "class_prompt": config.subject.fill(config.subject.class_prompt),
        "seeds": rules.seeds,
        "seed": rules.seed,
    }
    prompts = put_blob(store, json.dumps(asked, indent=1).encode())
    images = [
        mlflow_run.DatasetInput(name, made.uri, made.digest, {"images": made.count})
        for name, made in found.sets.items()
    ]
    profile = {"prompts": len(rules.kinds), "seeds": rules.seeds}
    place = f"{store.uri}/{blob_key(prompts)}"
    return (*images, mlflow_run.DatasetInput("evaluation_prompts", place, prompts.sha256, profile))


def _grids(store: Store, found: RunInputs) -> Iterator[tracking.ImageGrid]:
    """Photos, and what base and model make of the same prompts and seeds, at their steps."""
    scores, end = found.scores, found.weights.steps
    for name, step, shown in (
        ("instance images", 0, found.instance),
        ("evaluation", 0, scores.base_samples),
        ("evaluation", end, scores.samples),
        ("class images", 0, scores.base_class_samples),
        ("class images", end, scores.class_samples),
    ):
        if shown.images:
            yield tracking.ImageGrid(name, step, contact_sheet(store, shown.images))


def _version(client: Any, name: str, run: str, model: str, tags: dict[str, str]) -> str:
    """The version of this run with this key, found or made."""
    for found in client.search_model_versions(f"name = '{name}'"):
        if (found.run_id, found.tags.get(tracking.KEY)) == (run, tags[tracking.KEY]):
            return str(found.version)
    place = client.get_logged_model(model).artifact_location
    # an sqlite registry forgets `model_id`
    named = {**tags, "dreambooth.logged_model": model}
    return str(client.create_model_version(name, place, run, tags=named, model_id=model).version)


def _become_candidate(config: Config, book: AliasLog, version: str) -> AliasState:
    def propose(standing: AliasState) -> AliasChange | None:
        if standing.candidate == version:
            return None
        return AliasChange(action="register", version=version, by=current_user(), when=utc_now())

    book.enter(propose)
    return followed(config, book)


def _pointer(config: Config) -> str:
    """Key of the word that names the registered model, as this tracking store knows it."""
    return f"models/{config.name}/registry-{digest_of(tracking.identity(config).encode())[:16]}"
