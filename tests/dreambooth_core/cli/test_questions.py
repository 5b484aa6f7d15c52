"""`dreambooth ask` on a registered version, with a chat server on loopback."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from dreambooth_core.cli.questions import app
from dreambooth_core.errors import ConfigError, StageFailed
from dreambooth_core.registry import register
from dreambooth_core.registry.provenance import read_provenance
from dreambooth_core.tracking import mlflow as tracking
from tests.chat_server import Reply, scripted
from tests.registered_by_hand import version_by_hand


@pytest.fixture
def config(tracked_config, file_store):
    """The config of a registered version, `tiny/1`."""
    client = tracking.open_client(tracked_config)
    version = version_by_hand(client, tracked_config, file_store, "a")
    log = register.open_alias_log(client, tracked_config, file_store)
    tags = {
        "dreambooth.config": tracked_config.model_dump_json(exclude={"paths"}),
        "dreambooth.weights_record": read_provenance(log, version.version).weights,
    }
    for name, value in tags.items():
        client.set_model_version_tag("tiny", version.version, name, value)
    client.set_registered_model_alias("tiny", "candidate", version.version)
    return tracked_config


@pytest.fixture
def file_for(config, tmp_path):
    """Write the config with a vision-language model at a URL, and return its path."""

    def write(url: str) -> str:
        vision = {"backend": "openai_compatible", "url": url, "model": "m", "attempts": 1}
        document = {**config.model_dump(mode="json"), "vision": vision}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return str(path)

    return write


def reply(answer: str, **labels) -> Reply:
    return Reply(json.dumps({"reason": "by the table", "answer": answer, **labels}))


def ask(*words: str, typed: str | None = None):
    return CliRunner().invoke(app, [*words], input=typed)


def test_several_questions_are_one_conversation(file_for):
    replies = (reply("The first.", prompts=["P1"], images=["P1.2"]), reply("It is noise."))
    with scripted(*replies) as server:
        words = ("tiny/1", "Which prompts failed?", "Why?", "--config", file_for(server.url))
        done = ask(*words, "--json")
        assert done.exception is None, done.exception
        found = json.loads(done.stdout)
        assert len(server.requests[1]["messages"]) == 3
        again = json.loads(ask(*words, "--json").stdout)
        assert len(server.requests) == 2, "repeated questions are answered from the store"
    assert found["run"] == "tiny/1"
    assert [one["answer"] for one in found["answers"]] == ["The first.", "It is noise."]
    assert found["answers"][0]["prompts"] == [{"label": "P1", "prompt": "p"}]
    assert found["answers"][0]["images"][0]["uri"].startswith("file://")
    assert [one["cached"] for one in again["answers"]] == [True, True]
    assert found["unanswered"] == []


def test_questions_are_read_until_the_end_of_input(file_for, config):
    replies = (reply("Yes.", prompts=["P1"]), reply("No."))
    with scripted(*replies) as server:
        path = file_for(server.url)
        # the run by the config's path
        done = ask(path, typed="Did it work?\n\nSure?\n")
        assert done.exception is None, done.exception
    lines = done.stdout.splitlines()
    assert lines[:3] == ["Yes.", "  because by the table", "  P1  p"]
    assert "No." in lines
    assert lines[-1].startswith("2 requests, 0 cached answers")
    assert len(server.requests[1]["messages"]) == 3


def test_an_unanswered_question_is_reported_and_the_next_one_asked(file_for):
    with scripted(Reply("no"), Reply("no"), reply("Yes.")) as server:
        done = ask("tiny/1", "A?", "B?", "--config", file_for(server.url), "--json")
    assert done.exception is None, done.exception
    found = json.loads(done.stdout)
    assert [one["question"] for one in found["answers"]] == ["B?"]
    ((question, error),) = [one.values() for one in found["unanswered"]]
    assert question == "A?"
    assert "two invalid answers" in error


def test_no_answer_at_all_ends_with_exit_code_4(file_for):
    with scripted(Reply("no")) as server:
        done = ask("tiny/1", "A?", "--config", file_for(server.url))
    assert isinstance(done.exception, StageFailed)
    assert "m answered none of 1 questions" in str(done.exception)


def test_a_run_without_a_vision_model_needs_a_config(config):
    done = ask("tiny/1", "A?", "--work", str(config.paths.work))
    assert isinstance(done.exception, ConfigError)
    for key in ("vision.backend", "vision.model", "vision.url", "--config"):
        assert key in str(done.exception)
