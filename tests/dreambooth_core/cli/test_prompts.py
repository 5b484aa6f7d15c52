"""`dreambooth prompts` with a chat server on loopback and a tiny registered model."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from dreambooth_core.batch_sampling.job import read_job
from dreambooth_core.cli.prompts import app
from dreambooth_core.config import load_config
from dreambooth_core.errors import ConfigError
from dreambooth_core.registry import register
from dreambooth_core.registry.provenance import read_provenance
from dreambooth_core.storage.blobs import put_record
from dreambooth_core.tracking import mlflow as tracking
from tests.chat_server import Reply, serving
from tests.orders_for_real import SampledModels
from tests.registered_by_hand import stored_inputs

SCENES = ["a {subject} at sea", "a {subject} by a campfire", "{subject} under a pine tree"]


def run(*words: str):
    return CliRunner().invoke(app, [*words])


def document(done) -> dict:
    assert done.exception is None, done.exception
    return json.loads(done.stdout)


@pytest.fixture
def file_for(tmp_path):
    """Write a config with a vision-language model at a URL, and return its path."""

    def write(url: str, base: dict | None = None) -> str:
        plain = {
            "name": "aurora",
            "subject": {"images": "photos", "class_noun": "mug"},
            "paths": {"work": str(tmp_path / "work")},
            "storage": {"uri": f"file://{tmp_path / 'store'}"},
        }
        vision = {"backend": "openai_compatible", "url": url, "model": "m", "attempts": 1}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**(base or plain), "vision": vision}), encoding="utf-8")
        return str(path)

    return write


def writer():
    def answer(number, request):
        text = str(request["messages"][-1]["content"])
        if "Which of these prompts" in text:
            return Reply(json.dumps({"reason": "r", "unfit": []}))
        return Reply(json.dumps({"reason": "r", "prompts": SCENES}))

    return serving(answer)


def test_written_prompts_are_read_by_a_config_and_by_a_sampling_job(file_for, tmp_path):
    recipe, job = tmp_path / "prompts.yaml", tmp_path / "out" / "job.csv"
    with writer() as server:
        config = file_for(server.url)
        words = ("write", config, "--count", "3", "--kind", "objects")
        found = document(run(*words, "--out", str(recipe), "--json"))
        count = len(server.requests)
        printed = run(*words, "--out", str(job))
        assert len(server.requests) == count, "answers are cached in the store"
    assert found["prompts"]["scene"] == SCENES
    assert load_config(Path(config), recipe=str(recipe)).evaluation.prompts == tuple(SCENES)
    assert read_job(job).models == ["aurora"]
    assert sorted(group.prompts[0] for group in read_job(job).groups) == sorted(SCENES)
    assert "3 of 3 prompts written, 0 refused" in printed.stdout


def test_a_subject_card_needs_a_config_with_a_model(file_for, tmp_path):
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"class_noun": "mug", "must_keep": ["campfire"]}))
    with writer() as server:
        config = file_for(server.url)
        missing = run("write", str(card))
        words = ("write", str(card), "--config", config, "--kind", "objects", "--count", "2")
        found = document(run(*words, "--json"))
    assert isinstance(missing.exception, ConfigError)
    assert "--config" in str(missing.exception)
    assert found["prompts"]["scene"] == [SCENES[0], SCENES[2]]
    assert found["refused"] == 1
    assert '\\"campfire\\"' in json.dumps(server.requests)


def test_wrong_files_are_refused(file_for, tmp_path):
    card = tmp_path / "card.yaml"
    card.write_text("colours: [blue]\n")
    config = file_for("http://127.0.0.1:9/v1")
    for words, message in [
        (("write", config, "--out", "prompts.txt"), "must end in .yaml"),
        (("write", config, "--out", config), "is the file that is read"),
        (("write", str(card), "--config", config), "class_noun"),
    ]:
        error = run(*words).exception
        assert isinstance(error, ConfigError)
        assert message in str(error)


@pytest.fixture
def tuned(tracked_config, file_for):
    """A registered model `dog` with the scores of two prompts, and the writer of its config."""
    models = SampledModels(tracked_config)
    models.register("dog")
    config, store = models.models["dog"].config, models.store
    log = register.open_alias_log(tracking.open_client(config), config, store)
    put_record(store, read_provenance(log, "1").scores, stored_inputs(store).scores)
    return lambda url: file_for(url, config.model_dump(mode="json"))


def test_a_prompt_is_repaired_and_its_best_image_written(tuned, tmp_path):
    drawn = []

    def answer(number, request):
        text = str(request["messages"][-1]["content"])
        if "must visibly show" in text:
            return Reply(json.dumps({"reason": "r", "requirements": ["a robot in the snow"]}))
        if "Which of these requirements" in text:
            drawn.append(number)
            check = {"requirement": 1, "reason": "no snow", "visible": len(drawn) == 2}
            return Reply(json.dumps({"checks": [check]}))
        return Reply(json.dumps({"reason": "r", "prompt": "{subject} in deep white snow"}))

    out = tmp_path / "out"
    with serving(answer) as server:
        config = tuned(server.url)
        options = ("--seeds", "1", "--config", config, "--out", str(out))
        found = document(run("repair", "dog", "--worst", "1", *options, "--json"))
        assert isinstance(run("repair", "dog", *options).exception, ConfigError)
        printed = run("repair", "dog", "--worst", "1", *options).stdout
    (repair,) = found["repairs"]
    # prompt fidelity is 0.5 on the beach and 0.75 in the snow
    assert repair["template"] == "{subject} on the beach"
    assert [one["template"] for one in repair["rounds"]] == [
        "{subject} on the beach",
        "{subject} in deep white snow",
    ]
    assert repair["passed"] is True
    with Image.open(repair["path"]) as image:
        assert image.text["prompt"] == "sks robot in deep white snow"
    assert Path(repair["path"]).parent == out
    assert json.loads((out / "repairs.json").read_text())["model"] == "dog/1"
    assert "{subject} on the beach  all requirements met" in printed
    assert "round 2: {subject} in deep white snow (requirements met per image: 100%)" in printed
