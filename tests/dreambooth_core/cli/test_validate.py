"""`dreambooth validate` with a vision-language model: a chat server on loopback."""

import json

import yaml
from typer.testing import CliRunner

from dreambooth_core.cli.training import app
from dreambooth_core.errors import DatasetRefused
from tests.chat_server import Reply, serving

ANSWER = {
    "reason": "r",
    "answer": True,
    "odd": [],
    **{
        name: {"reason": "a shop's mark", "answer": name == "watermark"}
        for name in ("hidden", "cut_off", "watermark", "text", "people")
    },
}


def answer(number, request):
    about_the_noun = "Is robot the right" in str(request["messages"])
    return Reply("no" if about_the_noun else json.dumps(ANSWER))


def test_the_model_is_asked_if_the_config_has_it_and_unanswered_questions_are_counted(
    tiny_config, tmp_path
):
    config = tmp_path / "config.yaml"
    with serving(answer) as server:
        vision = {"backend": "openai_compatible", "url": server.url, "model": "m", "attempts": 1}
        changes = {"vision": vision, "dataset": {"second_opinion": "hard"}}
        config.write_text(yaml.safe_dump({**tiny_config.model_dump(mode="json"), **changes}))
        words = ["validate", str(tiny_config.subject.images), "--config", str(config)]
        done = CliRunner().invoke(app, [*words, "--json"])
        count = len(server.requests)
        again = CliRunner().invoke(app, words)
        assert len(server.requests) == count + 2, "only the unanswered question is repeated"
        CliRunner().invoke(app, ["validate", str(tiny_config.subject.images)])
        assert len(server.requests) == count + 2, "without the config nothing is asked"
    assert isinstance(done.exception, DatasetRefused)
    found = json.loads(done.stdout)
    hard = [one for one in found["findings"] if one["level"] == "hard"]
    assert [one["measure"] for one in hard] == ["a watermark: a shop's mark"] * 4
    assert (found["refused"], found["unanswered"]) == (True, 1)
    assert "1 questions to the vision-language model were not answered" in again.stdout
