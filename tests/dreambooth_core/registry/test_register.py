"""Registration with MLflow in a sqlite file."""

import json
import shutil

import pytest

from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError, StorageError
from dreambooth_core.registry import register
from dreambooth_core.storage.blobs import blob_key, get_blob, get_record, put_blob
from dreambooth_core.storage.records import Blob, ImageSet, SampleSet, Scores, Weights
from dreambooth_core.tracking import mlflow as tracking
from tests.registered_by_hand import noise_images


@pytest.fixture
def made(file_store):
    """Instance images, class images, weights, scores."""
    samples = [noise_images(file_store, SampleSet, seed) for seed in range(4)]
    weights = Weights(
        uri=f"{file_store.uri}/runs/k",
        digest="a" * 64,
        method="full",
        files={},
        steps=3,
        losses=((1, 0.5, 0.25), (3, 0.4, None)),
    )
    scores = Scores(
        uri="file:///s",
        digest="b" * 64,
        metrics={"clip_i": 0.75},
        base_metrics={"clip_i": 0.5},
        reference={"clip_i": 0.875},
        samples=samples[0],
        base_samples=samples[1],
        class_samples=samples[2],
        base_class_samples=samples[3],
    )
    return (
        noise_images(file_store, ImageSet, 8),
        noise_images(file_store, ImageSet, 9),
        weights,
        scores,
    )


def test_a_version_has_the_digests_of_its_inputs(tracked_config, file_store, made):
    instance, classes, weights, scores = made
    version, reused = register.register(tracked_config, file_store, *made)
    assert not reused
    assert (version.name, version.version, version.aliases) == ("tiny", "1", ("candidate",))
    client = tracking.open_client(tracked_config)
    found = client.get_model_version_by_alias("tiny", "candidate")
    assert found.version in ("1", 1)
    tags = {key.removeprefix("dreambooth."): value for key, value in found.tags.items()}
    assert tags["instance_images_digest"] == instance.digest
    assert tags["class_images_digest"] == classes.digest
    assert tags["weights_digest"] == weights.digest
    assert tags["scores_digest"] == scores.digest
    assert tags["base"] == tracked_config.model.base
    assert len(tags["base_digest"]) == 64
    assert tags["metric.clip_i"] == "0.750000"
    assert get_record(file_store, tags["weights_record"], Weights) == weights
    trained = Config.model_validate_json(tags["config"])
    assert trained.model_copy(update={"paths": tracked_config.paths}) == tracked_config


def test_the_run_has_metrics_losses_images_and_inputs(tracked_config, file_store, made):
    version, _ = register.register(tracked_config, file_store, *made)
    client = tracking.open_client(tracked_config)
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.steps"] == "6"
    assert run.data.metrics["clip_i"] == 0.75
    assert run.data.metrics["base.clip_i"] == 0.5
    assert run.data.metrics["photos.clip_i"] == 0.875
    history = client.get_metric_history(version.run_id, "loss/instance")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (3, 0.4)]
    assert len(client.get_metric_history(version.run_id, "loss/class")) == 1
    inputs = {each.dataset.name: each.dataset.digest for each in run.inputs.dataset_inputs}
    prompts_digest = inputs.pop("evaluation_prompts")
    assert inputs == {"instance_images": made[0].digest[:36], "class_images": made[1].digest[:36]}
    tags = [{tag.key: tag.value for tag in each.tags} for each in run.inputs.dataset_inputs]
    digests = {tag["mlflow.data.context"]: tag["dreambooth.digest"] for tag in tags}
    assert digests["instance_images"] == made[0].digest
    prompts = json.loads(get_blob(file_store, Blob(sha256=digests["evaluation_prompts"], size=0)))
    assert digests["evaluation_prompts"].startswith(prompts_digest)
    assert prompts["prompts"]["sks robot on the beach"] == "scene"
    sheets = {artifact.path for artifact in client.list_artifacts(version.run_id, "images")}
    names = {path.split("+timestamp")[0] for path in sheets}
    assert names == {
        "images/instance images+step+0",
        *(
            f"images/{name}+step+{step}"
            for name in ("evaluation", "class images")
            for step in (0, 3)
        ),
    }
    assert run.info.artifact_uri.startswith(f"{tracked_config.storage.uri}/mlflow/")


def test_equal_weights_and_scores_give_the_same_version(tracked_config, file_store, made):
    first, _ = register.register(tracked_config, file_store, *made)
    assert register.register(tracked_config, file_store, *made) == (first, True)
    # also when the store has no record, as after a crash between MLflow and the store
    for key in list(file_store.keys("register/")):
        file_store.delete(key)
    assert register.register(tracked_config, file_store, *made) == (first, False)
    client = tracking.open_client(tracked_config)
    assert len(client.search_model_versions("name = 'tiny'")) == 1


def test_the_last_registered_version_is_the_candidate(tracked_config, file_store, made):
    instance, classes, weights, scores = made
    other = scores.model_copy(update={"digest": "c" * 64})
    register.register(tracked_config, file_store, *made)
    register.register(tracked_config, file_store, instance, classes, weights, other)
    client = tracking.open_client(tracked_config)
    assert str(client.get_model_version_by_alias("tiny", "candidate").version) == "2"
    _, reused = register.register(tracked_config, file_store, *made)
    assert reused
    assert str(client.get_model_version_by_alias("tiny", "candidate").version) == "1"


def test_a_version_deleted_in_mlflow_is_registered_anew(tracked_config, file_store, made):
    """A later version of the same number, of another training, is not taken for it."""
    instance, classes, weights, scores = made
    others = weights.model_copy(update={"digest": "d" * 64})
    client = tracking.open_client(tracked_config)
    first, _ = register.register(tracked_config, file_store, *made)
    client.delete_registered_model("tiny")
    register.register(tracked_config, file_store, instance, classes, others, scores)
    again, reused = register.register(tracked_config, file_store, *made)
    assert (again.version, again.run_id, reused) == ("2", first.run_id, False)
    found = client.get_model_version_by_alias("tiny", "candidate")
    assert found.tags["dreambooth.weights_digest"] == weights.digest

    client.delete_model_version("tiny", "2")
    third, reused = register.register(tracked_config, file_store, *made)
    assert (third.version, third.run_id, reused) == ("3", first.run_id, False)
    assert register.register(tracked_config, file_store, *made) == (third, True)


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_a_versions_run_is_taken_out_of_the_bin(what, tracked_config, file_store, made, capsys):
    first, _ = register.register(tracked_config, file_store, *made)
    client = tracking.open_client(tracked_config)
    if what == "run":
        client.delete_run(first.run_id)
    else:
        client.delete_experiment(client.get_run(first.run_id).info.experiment_id)
        tracking.training_run(client, tracked_config, "another")
    assert register.register(tracked_config, file_store, *made) == (first, True)
    assert client.get_run(first.run_id).info.lifecycle_stage == "active"
    assert "restored" in capsys.readouterr().err


def test_another_word_on_consent_is_another_version(tracked_config, file_store, made):
    first, _ = register.register(tracked_config, file_store, *made)
    subject = tracked_config.subject.model_copy(update={"consent": "Ann, in writing"})
    config = tracked_config.model_copy(update={"subject": subject})
    second, reused = register.register(config, file_store, *made)
    assert (first.version, second.version, reused) == ("1", "2", False)
    found = register.find_version(None, config.paths.work, "tiny")
    assert found.config.subject.consent == "Ann, in writing"


def test_a_version_is_registered_again_in_another_database(
    tracked_config, file_store, made, tmp_path
):
    register.register(tracked_config, file_store, *made)
    other = tracked_config.model_copy(
        update={"paths": tracked_config.paths.model_copy(update={"work": tmp_path / "other"})}
    )
    version, reused = register.register(other, file_store, *made)
    assert not reused
    assert register.find_version(None, tmp_path / "other", "tiny").version == version.version


def test_a_deleted_database_is_another_one(tracked_config):
    before = tracking.identity(tracked_config)
    assert tracking.identity(tracked_config) == before
    (tracked_config.paths.work / "mlflow.db").unlink()
    assert tracking.identity(tracked_config) != before


def test_no_version_is_registered_without_its_weights(tracked_config, file_store, made):
    instance, classes, weights, scores = made
    blob = put_blob(file_store, b"weights")
    whole = weights.model_copy(update={"files": {"unet/weights.safetensors": blob}})
    file_store.delete(blob_key(blob))
    with pytest.raises(StorageError, match="without which no version can be used"):
        register.register(tracked_config, file_store, instance, classes, whole, scores)
    client = tracking.open_client(tracked_config)
    assert not client.search_registered_models()
    put_blob(file_store, b"weights")
    register.register(tracked_config, file_store, instance, classes, whole, scores)
    assert len(client.search_model_versions("name = 'tiny'")) == 1


def test_the_run_has_its_logged_model(tracked_config, file_store, made):
    version, _ = register.register(tracked_config, file_store, *made)
    client = tracking.open_client(tracked_config)
    (model,) = client.get_run(version.run_id).outputs.model_outputs
    found = client.get_model_version("tiny", "1")
    assert (found.tags["dreambooth.logged_model"], model.step) == (model.model_id, 3)
    logged = client.get_logged_model(model.model_id)
    assert str(logged.status) == "READY"
    assert {metric.key: metric.value for metric in logged.metrics}["clip_i"] == 0.75
    assert found.source == logged.artifact_location
    assert found.source.startswith(tracked_config.storage.uri)


def test_without_class_images(tracked_config, file_store, made):
    instance, _, weights, scores = made
    version, _ = register.register(tracked_config, file_store, instance, None, weights, scores)
    run = tracking.open_client(tracked_config).get_run(version.run_id)
    names = [each.dataset.name for each in run.inputs.dataset_inputs]
    assert sorted(names) == ["evaluation_prompts", "instance_images"]


def test_a_version_is_found_by_name_alias_and_number(tracked_config, file_store, made):
    register.register(tracked_config, file_store, *made)
    moved = shutil.move(tracked_config.paths.work, tracked_config.paths.work.with_name("moved"))
    for wanted in ("tiny", "tiny@candidate", "tiny/1"):
        found = register.find_version(None, moved, wanted)
        assert (found.name, found.version) == ("tiny", "1")
        assert found.config.paths.work == moved
        assert found.config.model == tracked_config.model
    for wanted in ("nobody", "tiny@champion", "tiny/7", "tiny/x"):
        with pytest.raises(ConfigError, match="known models: tiny"):
            register.find_version(None, moved, wanted)


def test_a_missing_registry_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--work"):
        register.find_version(None, tmp_path, "tiny")


def test_parameters_are_flat_and_without_passwords():
    document = {"a": {"b": 1, "uri": "http://me:s@c?r#et@host/x?y=a@b"}, "c": None}
    assert tracking.flat(document) == {"a.b": "1", "a.uri": "http://host/x?y=a@b", "c": "None"}
