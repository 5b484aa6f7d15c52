"""`dreambooth vision check` with a chat server on loopback."""

import json

import pytest

from dreambooth_core.cli import app
from dreambooth_core.errors import ConfigError, StageFailed
from tests.chat_server import Reply, serving

CONFIG = """\
name: check
subject: {images: ".", class_noun: dog}
vision: {backend: openai_compatible, url: "%s", model: glm-4.5v, attempts: 1}
evaluation: {clip: no/such/encoder}
"""


def run(*arguments: str):
    return app(["vision", "check", *arguments], standalone_mode=False)


def test_it_prints_all_eight_and_fails_for_a_model_without_answers(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    with serving(lambda *_: Reply("no")) as server:
        config.write_text(CONFIG % server.url)
        with pytest.raises(StageFailed, match="did not pass video, captions"):
            run("--config", str(config), "--json")
    printed = json.loads(capsys.readouterr().out)
    assert len(printed) == 8
    for name, one in printed.items():
        assert {"passed", "measured", "limit"} <= one.keys()
        assert one["passed"] is False
        assert one["measured"] == (None if name == "search" else 0)
    assert "no/such/encoder" in printed["search"]["missing"]


def test_a_config_without_a_model_is_refused(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text('name: check\nsubject: {images: ".", class_noun: dog}\n')
    with pytest.raises(ConfigError, match=r"set vision\.backend"):
        run("--config", str(config))
