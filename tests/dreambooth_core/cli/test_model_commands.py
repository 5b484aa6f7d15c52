"""The commands about registered models, typed for real on a real MLflow store."""

import json

import pytest
from typer.testing import CliRunner

from dreambooth_core.cli.models import app
from dreambooth_core.errors import ConfigError
from dreambooth_core.registry import model_card, promotion, provenance, register
from dreambooth_core.registry.provenance import read_provenance, run_inputs
from dreambooth_core.storage import records
from dreambooth_core.storage.blobs import put_blob
from dreambooth_core.storage.records import Weights
from dreambooth_core.tracking import mlflow as tracking
from tests.registered_by_hand import stored_inputs, verdict, version_by_hand


def registered(client, config, store, mark: str):
    """A version that the commands can find."""
    version = version_by_hand(client, config, store, mark)
    origin = read_provenance(register.open_alias_log(client, config, store), version.version)
    tags = {
        "dreambooth.config": config.model_dump_json(exclude={"paths"}),
        "dreambooth.weights_record": origin.weights,
        "dreambooth.metric.clip_i": "0.750000",
    }
    for name, value in tags.items():
        client.set_model_version_tag("tiny", version.version, name, value)
    return version


@pytest.fixture
def work(tracked_config, file_store):
    """A work folder where version 1 is champion, and version 2, of other photos, was refused."""
    client = tracking.open_client(tracked_config)
    first = registered(client, tracked_config, file_store, "a")
    subject = tracked_config.subject.model_copy(update={"consent": "mine | all mine"})
    train = tracked_config.train.model_copy(update={"steps": 9})
    other = tracked_config.model_copy(update={"subject": subject, "train": train})
    second = registered(client, other, file_store, "b")
    promotion.apply_verdict(tracked_config, file_store, first, verdict("1", "promote", "base"))
    kept = verdict("2", "keep", "tiny/1", candidate=stored_inputs(file_store, "b").scores)
    promotion.apply_verdict(other, file_store, second, kept)
    return tracked_config.paths.work


def with_another_subject(config):
    """Two subjects, of each of which the other half is known."""
    first = config.subject.model_copy(update={"provenance": "my desk"})
    named = {"class_noun": "mug", "identifier": "zwx", "consent": "Ann | her mug"}
    other = config.subject.model_copy(update=named)
    return config.model_copy(update={"subject": first, "more_subjects": (other,)})


def typed(work, *words: str):
    return CliRunner().invoke(app, [*words, "--work", str(work)])


def json_of(work, *words: str):
    done = typed(work, *words, "--json")
    assert done.exception is None, done.exception
    return json.loads(done.stdout)


def test_models_are_listed_with_the_gates_decision(work) -> None:
    second, first = json_of(work, "models")
    assert (first["name"], first["version"], first["aliases"]) == ("tiny", "1", ["champion"])
    assert (first["verdict"], second["verdict"]) == ("promote", "keep")
    assert first["metrics"] == {"clip_i": 0.75}
    assert "tiny/2" in typed(work, "models").stdout


def test_models_of_others_are_not_listed(work, tracked_config) -> None:
    tracking.open_client(tracked_config).create_registered_model("Bob's model")
    assert [row["name"] for row in json_of(work, "models")] == ["tiny", "tiny"]


def test_promote_and_rollback(work) -> None:
    refused = typed(work, "promote", "tiny/2", "--yes")
    assert isinstance(refused.exception, ConfigError)
    assert "give --reason" in str(refused.exception)
    reason = ("--reason", "the client likes it", "--by", "ann")
    asked = typed(work, "promote", "tiny/2", *reason)
    assert isinstance(asked.exception, ConfigError), "no terminal to ask on"
    assert asked.exception.exit_code == 2
    assert json_of(work, "promote", "tiny/2", "--yes", *reason)["aliases"] == {
        "champion": "2",
        "previous": "1",
    }
    assert json_of(work, "rollback", "tiny", "--yes")["aliases"] == {"champion": "1"}
    assert json_of(work, "rollback", "tiny/2", "--yes")["aliases"] == {"champion": "1"}
    assert "first champion" in str(typed(work, "rollback", "tiny@champion", "--yes").exception)
    assert "first champion" in str(typed(work, "rollback", "tiny", "--yes").exception)


def test_an_alias_is_read_from_the_log(work, tracked_config, file_store) -> None:
    client = tracking.open_client(tracked_config)
    log = register.open_alias_log(client, tracked_config, file_store)
    last = log.latest()
    assert last is not None
    change = last.model_copy(update={"version": "2", "action": "override"})
    log.append(lambda _: change)  # but MLflow was not updated
    assert json_of(work, "lineage", "tiny@champion")["model"] == "tiny/2"


def test_lineage_from_the_photos_to_the_aliases(work, file_store) -> None:
    found = stored_inputs(file_store, "a")
    traced = json_of(work, "lineage", "tiny@champion")
    assert [photo["sha256"] for photo in traced["instance"]["images"]] == [
        image.blob.sha256 for image in found.instance.images
    ]
    assert found.classes is not None
    assert traced["classes"]["digest"] == found.classes.digest
    assert traced["training"]["weights"] == "a" * 64
    assert traced["training"]["code"] == f"0.0.1 {'a' * 40}"
    assert traced["scores"]["digest"] == "a" * 64
    assert traced["verdict"]["outcome"] == "promote"
    (change,) = traced["changes"]
    assert (change["action"], change["by"]) == ("promote", promotion.GATE)
    assert change["verdict"] == traced["verdict"]["digest"]
    assert change["when"].endswith("+00:00")
    shown = typed(work, "lineage", "tiny@champion").stdout
    shown = " ".join(shown.split())
    assert "promote by the gate: @champion" in shown
    assert "training code 0.0.1 " in shown


def test_lineage_has_provenance_and_consent_of_every_subject(
    work, tracked_config, file_store
) -> None:
    config = with_another_subject(tracked_config)
    registered(tracking.open_client(config), config, file_store, "c")
    traced = json_of(work, "lineage", "tiny/3")
    assert traced["subjects"] == [
        {"subject": "sks robot", "provenance": "my desk", "consent": ""},
        {"subject": "zwx mug", "provenance": "", "consent": "Ann | her mug"},
    ]
    assert traced["config"] == records.config_digest(config)
    shown = [" ".join(line.split()) for line in typed(work, "lineage", "tiny/3").stdout.split("\n")]
    assert "provenance sks robot: my desk" in shown
    assert "consent sks robot: not given" in shown
    assert "provenance zwx mug: not given" in shown
    assert "consent zwx mug: Ann | her mug" in shown


def test_lineage_has_rejections(work, tracked_config, file_store) -> None:
    promotion.reject(
        tracked_config, file_store, promotion.PromotionRequest("2", "ann", "too yellow")
    )
    changes = json_of(work, "lineage", "tiny/2")["changes"]
    assert [(one["action"], one["by"], one["reason"]) for one in changes] == [
        ("reject", "ann", "too yellow")
    ]
    assert "reject" not in [one["action"] for one in json_of(work, "lineage", "tiny/1")["changes"]]


def test_diff_lists_the_differences(work, tmp_path) -> None:
    page = tmp_path / "pages" / "diff.html"
    found = json_of(work, "diff", "tiny/1", "tiny/2", "--out", str(page))
    assert found["config"] == {
        "subject.consent": ["", "mine | all mine"],
        "train.steps": ["6", "9"],
    }
    assert found["data"] == {"weights": ["a" * 64, "b" * 64], "scores": ["a" * 64, "b" * 64]}
    compared = {one["metric"]: one for one in found["comparisons"]}
    assert compared.keys() == {"subject_fidelity", "prompt_fidelity"}
    assert compared["subject_fidelity"]["difference"] == 0.0
    html = page.read_text()
    assert html.count('src="data:image/webp;base64,') == 4
    assert "tiny/1, seed 0" in html
    assert "<h3>p</h3>" in html


def test_versions_of_different_plans_have_no_paired_comparison(work, file_store) -> None:
    key = "scores/b/result.json"
    scores = stored_inputs(file_store, "b").scores.model_copy(update={"plan": "0" * 64})
    file_store.put(key, scores.model_dump_json().encode())
    found = json_of(work, "diff", "tiny/1", "tiny/2")
    assert found["comparisons"] == []
    assert "evaluation plans differ" in found["why_not"]


def test_model_card_has_decision_licence_and_worst_images(work, tracked_config, file_store) -> None:
    client = tracking.open_client(tracked_config)
    log = register.open_alias_log(client, tracked_config, file_store)
    card = file_store.get(f"{log.prefix}/cards/2.md").decode()
    assert "# tiny, version 2" in card
    assert "keep \\| against tiny/1" in card, "bars are escaped in tables"
    assert "mine \\| all mine" in card
    assert "`model.licence`" in card
    assert "sks robot" in card
    worst = card.index("| 0.250 | sks robot in the snow | 2 |")
    assert worst < card.index("| 0.500 | sks robot on the beach | 1 |")
    assert "--format single_file --out ComfyUI/models/checkpoints/" in card
    assert "load_lora_weights" not in card
    described = client.get_model_version("tiny", "2").description
    assert f"{log.prefix}/cards/2.md" in described
    run = client.get_model_version("tiny", "2").run_id
    assert "model_card.md" in [artifact.path for artifact in client.list_artifacts(run)]


def test_model_card_has_provenance_and_consent_of_every_subject(tracked_config, file_store) -> None:
    found = stored_inputs(file_store)
    origin = provenance.provenance_of(with_another_subject(tracked_config), file_store, found)
    learned = model_card.render(file_store, model_card.CardInputs(origin, found)).split(
        "## Training data"
    )[1]
    lines = learned.split("## Scores")[0].splitlines()
    first = lines.index("- Provenance of the photos of `sks robot`: my desk")
    assert "not given in the config" in lines[first + 1]
    second = lines[first + 2]
    assert second.startswith("- Provenance of the photos of `zwx mug`: not given")
    assert lines[first + 3] == "- Consent: Ann \\| her mug"


def test_model_card_of_a_lora_shows_how_to_load_it(work, tracked_config, file_store):
    client = tracking.open_client(tracked_config)
    log = register.open_alias_log(client, tracked_config, file_store)
    origin = read_provenance(log, "1")
    found = run_inputs(file_store, origin)
    blob = put_blob(file_store, b"x")
    weights = Weights(uri="u", digest="c" * 64, method="lora", files={"a": blob}, steps=3)
    inputs = model_card.CardInputs(origin, type(found)(found.instance, None, weights, found.scores))
    card = model_card.render(file_store, inputs)
    assert "No verdict of the gate" in card
    assert 'pipeline.load_lora_weights("adapters/tiny")' in card
    assert "--format lora_kohya --out ComfyUI/models/loras/" in card
    assert "class images" not in card.split("## Scores")[0]
