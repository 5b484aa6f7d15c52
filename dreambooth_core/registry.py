"""Model versions: what was trained, from what, how good it is; enough to draw with it again.

A version says in MLflow, by its tags, and in the store, by its `Origin`, what it comes from. There is
none without its weights: they are looked for in the store before it is made.
"""

import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dreambooth_core
from dreambooth_core import entries, flavours, tracking
from dreambooth_core.aliases import CANDIDATE, Book, Change, Standing, now, whoever
from dreambooth_core.blobs import (
    blob_key,
    digest_json,
    digest_of,
    get_record,
    put_blob,
    put_record,
)
from dreambooth_core.config import Config, Paths
from dreambooth_core.errors import ConfigError, NotFound, StorageError
from dreambooth_core.records import ImageSet, ModelVersion, Record, Scores, Weights
from dreambooth_core.sampling import base_digest
from dreambooth_core.sheets import contact_sheet
from dreambooth_core.stages import once
from dreambooth_core.storage import Store

REGISTRY = "dreambooth.registry"
"""Tag of a registered model, made with it: names it for good (see `aliases.Book`)."""

PRIVATE: Any = {"paths": True, "tracking": {"uri"}}
"""What a version does not say of its config: this machine's folders, and a URI with maybe a password."""


class Origin(Record):
    """What a version comes from."""

    name: str
    version: str = ""
    run_id: str
    """The MLflow run."""
    model_id: str
    """The logged model in MLflow."""
    config: Config
    """As it was trained and measured, without `PRIVATE`."""
    instance: str
    """Key in the store of the instance images' manifest."""
    instance_digest: str
    classes: str | None
    """The same of the class images, if there are any."""
    classes_digest: str | None
    base_digest: str
    weights: str
    """Key of the `Weights`."""
    weights_digest: str
    scores: str
    """Key of the `Scores`."""
    scores_digest: str
    code: str
    """Version and, from a clone, commit of the code that registered it."""
    when: str
    """UTC, ISO 8601."""
    by: str


class Found(Record):
    """A registered version, and what is needed to load it."""

    name: str
    version: str
    config: Config
    """As the version was trained, with `paths.work` and `tracking` of the caller."""
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

    The same weights with the same scores find the same version again, which becomes the candidate
    once more if another has been in between. Raises `StageFailed` when MLflow does not answer, and
    `StorageError` when the store lacks a file of the weights.
    """
    inputs = {
        "name": config.name,
        "tracking": tracking.identity(config),
        "storage": store.uri,
        "instance": instance.digest,
        "classes": classes.digest if classes else None,
        "weights": weights.digest,
        "scores": scores.digest,
        "form": 2,  # of what is written
    }
    sets = {"instance_images": instance, **({"class_images": classes} if classes else {})}

    def make(key: str) -> ModelVersion:
        _check_stored(store, weights)
        client = tracking.open_client(config)
        tags = _tags(config, store, sets, weights, scores)
        entry = entries.Entry(
            key=key,
            tags=tags,
            weights=weights,
            scores=scores,
            inputs=_inputs(config, store, sets),
            grids=lambda: _grids(store, instance, weights, scores),
            model=lambda run: flavours.log_model(client, run, config, store, weights),
        )
        run, model = entries.log_run(client, config, entry)
        book = open_book(client, config, store)
        version = _version(client, config.name, run, model, {**tags, tracking.KEY: key})
        origin = _origin(config, store, sets, weights, scores).model_copy(
            update={"version": version, "run_id": run, "model_id": model}
        )
        put_record(store, f"{book.place}/versions/{version}.json", origin)
        return ModelVersion(name=config.name, version=version, aliases=(CANDIDATE,), run_id=run)

    version, reused = once(store, "register", inputs, ModelVersion, make)
    standing = _become_candidate(config, store, version.version)
    return version.model_copy(update={"aliases": standing.of(version.version)}), reused


def open_book(client: Any, config: Config, store: Store) -> Book:
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
    return Book(store, name, str(word))


def known_book(config: Config, store: Store) -> Book | None:
    """The same without asking MLflow; None for a model that was never registered from here."""
    try:
        return Book(store, config.name, store.get(_pointer(config)).decode())
    except NotFound:
        return None


def followed(config: Config, book: Book) -> Standing:
    """Who stands for the model, once MLflow says the same as the log; it is asked only if need be."""
    if book.is_followed():
        return book.standing
    return book.follow(tracking.open_client(config))


def origin_of(book: Book, version: str) -> Origin | None:
    """What a version comes from; None for one that was not registered by this project."""
    return get_record(book.store, f"{book.place}/versions/{version}.json", Origin)


def find_version(config: Config | None, work: Path, wanted: str) -> Found:
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
    return Found(
        name=found.name,
        version=str(found.version),
        config=trained.model_copy(update={"paths": Paths(work=work), "tracking": place.tracking}),
        weights_record=tags["dreambooth.weights_record"],
    )


def tracking_place(config: Config | None, work: Path) -> Config:
    """A config that says where MLflow is; raises `ConfigError` when there is none under `work`."""
    place = config or Config.model_validate(
        {"name": "x", "subject": {"images": ".", "class_noun": "x"}, "paths": {"work": work}}
    )
    if not place.tracking.uri and not (work / "mlflow.db").exists():
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


def _check_stored(store: Store, weights: Weights) -> None:
    for name, blob in weights.files.items():
        if store.size(blob_key(blob)) != blob.size:
            raise StorageError(
                f"{name} of the weights {weights.digest[:16]}... is not in {store.uri}: no version "
                f"is registered without its weights; delete {weights.uri} and train again"
            )


def _origin(
    config: Config, store: Store, sets: dict[str, ImageSet], weights: Weights, scores: Scores
) -> Origin:
    """Of a version that has no number yet."""
    instance, classes = sets["instance_images"], sets.get("class_images")
    return Origin(
        name=config.name,
        run_id="",
        model_id="",
        config=Config.model_validate(config.model_dump(mode="json", exclude=PRIVATE)),
        instance=_key(store, instance.uri),
        instance_digest=instance.digest,
        classes=_key(store, classes.uri) if classes else None,
        classes_digest=classes.digest if classes else None,
        base_digest=base_digest(config),
        weights=_weights_key(config, weights),
        weights_digest=weights.digest,
        scores=_key(store, scores.uri),
        scores_digest=scores.digest,
        code=f"{dreambooth_core.__version__} {_commit()}".strip(),
        when=now(),
        by=whoever(),
    )


def _tags(
    config: Config, store: Store, sets: dict[str, ImageSet], weights: Weights, scores: Scores
) -> dict[str, str]:
    """What the run and the version say of themselves in MLflow; the weights' record is written."""
    origin = _origin(config, store, sets, weights, scores)
    put_record(store, origin.weights, weights)
    plain = config.model_dump(mode="json", exclude={"paths"})
    classes = sets.get("class_images")
    return {
        "dreambooth.config": config.model_dump_json(exclude=PRIVATE),
        "dreambooth.config_digest": digest_json(plain),
        "dreambooth.family": config.model.family,
        "dreambooth.base": config.model.base,
        "dreambooth.base_revision": config.model.revision or "",
        "dreambooth.base_digest": origin.base_digest,
        "dreambooth.storage": tracking.without_password(config.storage.uri),
        "dreambooth.instance_images": sets["instance_images"].uri,
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
        "dreambooth.code": origin.code,
        **{f"dreambooth.metric.{name}": f"{value:.6f}" for name, value in scores.metrics.items()},
    }


def _inputs(config: Config, store: Store, sets: dict[str, ImageSet]) -> tuple[entries.Input, ...]:
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
        entries.Input(name, made.uri, made.digest, {"images": made.count})
        for name, made in sets.items()
    ]
    profile = {"prompts": len(rules.kinds), "seeds": rules.seeds}
    place = f"{store.uri}/{blob_key(prompts)}"
    return (*images, entries.Input("evaluation_prompts", place, prompts.sha256, profile))


def _grids(
    store: Store, instance: ImageSet, weights: Weights, scores: Scores
) -> Iterator[entries.Grid]:
    end = weights.steps
    for name, step, shown in (
        ("instance images", 0, instance),
        ("evaluation", 0, scores.base_samples),
        ("evaluation", end, scores.samples),
        ("class images", 0, scores.base_class_samples),
        ("class images", end, scores.class_samples),
    ):
        if shown.images:
            yield entries.Grid(name, step, contact_sheet(store, shown.images))


def _version(client: Any, name: str, run: str, model: str, tags: dict[str, str]) -> str:
    """The version with this key, found or made."""
    for found in client.search_model_versions(f"name = '{name}'"):
        if found.tags.get(tracking.KEY) == tags[tracking.KEY]:
            return str(found.version)
    place = client.get_logged_model(model).artifact_location
    return str(client.create_model_version(name, place, run, tags=tags, model_id=model).version)


def _become_candidate(config: Config, store: Store, version: str) -> Standing:
    book = known_book(config, store) or open_book(tracking.open_client(config), config, store)

    def propose(standing: Standing) -> Change | None:
        if standing.candidate == version:
            return None
        return Change(action="register", version=version, by=whoever(), when=now())

    book.enter(propose)
    return followed(config, book)


def _weights_key(config: Config, weights: Weights) -> str:
    return f"models/{config.name}/{weights.digest}.json"


def _key(store: Store, uri: str) -> str:
    return uri.removeprefix(f"{store.uri}/")


def _pointer(config: Config) -> str:
    """Key of the word that names the registered model, as this tracking store knows it."""
    return f"models/{config.name}/registry-{digest_of(tracking.identity(config).encode())[:16]}"


def _commit() -> str:
    """Commit of the working tree this runs from; empty for an installed copy."""
    home = Path(dreambooth_core.__file__).parent.parent
    if not (home / ".git").exists():
        return ""
    answer = subprocess.run(
        ["git", "-C", str(home), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip()
