"""Questions about a finished run, answered by a scripted chat server on loopback."""

import json
import re

import pytest

from dreambooth_core.config import Vision
from dreambooth_core.errors import Unanswered
from dreambooth_core.reports.run_questions import FinishedRun, RunConversation
from dreambooth_core.storage.blobs import blob_key
from dreambooth_core.vision.language.model import VisionLanguageModel
from dreambooth_core.vision.language.spending import Account
from tests.chat_server import Reply, scripted
from tests.reported_by_hand import run_of


@pytest.fixture
def run(tmp_path):
    """The store and a run with three prompts of two images each, and a verdict."""
    config, store, results = run_of(tmp_path)
    photos = results.intake.images
    return store, FinishedRun("tiny/2", config, photos, results.scores, results.verdict)


def model_at(server, name: str = "m") -> VisionLanguageModel:
    config = Vision(backend="openai_compatible", url=server.url, model=name, attempts=1)
    return VisionLanguageModel(config, account=Account())


def reply(answer: str, prompts=(), images=()) -> Reply:
    document = {"reason": "by the table", "answer": answer, "prompts": prompts, "images": images}
    return Reply(json.dumps(document))


def parts(message) -> list[str]:
    """`image` or the text of each part of a message."""
    content = message["content"]
    if isinstance(content, str):
        return [content]
    return [part.get("text", "image") for part in content]


def test_the_first_question_has_tables_and_sheets_and_later_ones_the_context(run):
    store, finished = run
    replies = (reply("The hat.", ["P3"], ["P3.1", "P2.2"]), reply("It is missing."))
    with scripted(*replies) as server, model_at(server) as model:
        conversation = RunConversation(model, store, finished)
        first = conversation.ask("Which prompts failed?")
        second = conversation.ask("Why?")
    assert (first.answer, first.reason) == ("The hat.", "by the table")
    assert [(one.label, one.prompt) for one in first.prompts] == [("P3", "sks robot in a hat")]
    images = finished.scores.samples.images
    assert [(one.label, one.seed, one.uri) for one in first.images] == [
        ("P2.2", 1, f"{store.uri}/{blob_key(images[3].blob)}"),
        ("P3.1", 0, f"{store.uri}/{blob_key(images[4].blob)}"),
    ]
    assert (second.prompts, second.images) == ((), ())

    (asked,) = server.requests[0]["messages"]
    text = parts(asked)[-1]
    assert parts(asked).count("image") == 2, "photos, and one sheet of three prompts"
    assert "Rows from the top: P1, P2, P3." in " ".join(parts(asked))
    assert "Decision of the quality gate: keep, against tiny/1" in text
    assert re.search(r"- identity \(higher is better\): candidate 0\.\d{3}", text)
    assert re.search(r"- P2 \(scene, 2 images\) .*sks robot on the beach.*identity candidate", text)
    assert "Question: Which prompts failed?" in text
    turns = server.requests[1]["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert parts(turns[0]) != parts(turns[2])
    assert parts(turns[2])[0].startswith("Question: Why?")


def test_prompts_and_images_that_the_run_does_not_have_are_sent_back(run):
    store, finished = run
    replies = (reply("P9.", ["P9"]), reply("P1.", ["P1"], ["P1.1"]))
    with scripted(*replies) as server, model_at(server) as model:
        answer = RunConversation(model, store, finished).ask("Which prompts failed?")
    assert [one.label for one in answer.prompts] == ["P1"]
    assert "the run has no 'P9'" in parts(server.requests[1]["messages"][-1])[0]
    invented = reply("P1.", ["P1"], ["P1.3"])
    refused = pytest.raises(Unanswered, match=r"the run has no 'P1\.3'")
    with scripted(invented) as server, model_at(server) as model, refused:
        RunConversation(model, store, finished).ask("Which images?")


def test_the_question_after_an_unanswered_one_has_the_data(run):
    store, finished = run
    replies = (Reply("no"), Reply("no"), reply("All is well."))
    with scripted(*replies) as server, model_at(server) as model:
        conversation = RunConversation(model, store, finished)
        with pytest.raises(Unanswered):
            conversation.ask("Which prompts failed?")
        assert conversation.ask("And now?").answer == "All is well."
    (message,) = server.requests[2]["messages"]
    assert parts(message).count("image") == 2
    assert "Metrics of the whole run" in parts(message)[-1]


def test_prompts_are_quoted_as_data(run):
    store, finished = run
    with scripted(reply("Fine.")) as server, model_at(server) as model:
        RunConversation(model, store, finished).ask("Which prompts failed?")
    text = parts(server.requests[0]["messages"][0])[-1]
    assert "<b>" not in text
    assert r"a \u003cb> photo of sks robot" in text


def test_a_model_of_one_image_gets_the_prompts_without_the_photos(run):
    store, finished = run
    with scripted(reply("Fine.")) as server, model_at(server, "paligemma") as model:
        RunConversation(model, store, finished).ask("Which prompts failed?")
    assert parts(server.requests[0]["messages"][0]).count("image") == 1


def test_a_run_without_verdict_and_image_scores_can_be_asked(run):
    store, finished = run
    bare = finished.scores.model_copy(update={"table": None})
    plain = FinishedRun("tiny/1", finished.config, finished.photos, bare, None)
    with scripted(reply("Fine.", ["P1"])) as server, model_at(server) as model:
        RunConversation(model, store, plain).ask("Which prompts failed?")
    text = parts(server.requests[0]["messages"][0])[-1]
    assert "Decision of the quality gate: none" in text
