"""The sections `vision` and `evaluation.judge`, and the profiles of servers and models."""

import pytest
import yaml

from dreambooth_core.config import Config, Judge, Vision
from dreambooth_core.config.old_keys import OldKeyWarning
from dreambooth_core.config.vision_profiles import (
    _FILE,
    list_price,
    model_profile,
    server_names,
    server_profile,
)
from dreambooth_core.errors import ConfigError

SERVER = {"backend": "openai_compatible", "url": "https://h/v1", "model": "m"}


def config_of(**sections) -> Config:
    return Config.model_validate({"subject": {"images": "x", "class_noun": "dog"}, **sections})


def test_vision_is_off_and_nothing_is_judged_by_default():
    config = config_of()
    assert config.vision.backend is None
    assert config.judge is None


def test_a_judge_without_a_model_uses_that_of_vision():
    config = config_of(
        vision={**SERVER, "budget": 1, "input_price": 1, "output_price": 2},
        evaluation={"judge": {"photos": 2}},
    )
    judge = config.judge
    assert (judge.url, judge.model, judge.budget, judge.photos, judge.at_once) == (
        "https://h/v1",
        "m",
        1,
        2,
        4,
    )
    again = Config.model_validate(config.model_dump(mode="json"))
    assert (again, again.judge) == (config, judge)


def test_a_judge_with_a_model_ignores_vision():
    own = {"url": "http://other/v1", "model": "n"}
    config = config_of(vision={**SERVER, "max_side": 99}, evaluation={"judge": own})
    assert (config.judge.url, config.judge.model, config.judge.max_side) == (*own.values(), 512)


def test_a_judge_without_a_model_has_no_options_of_one():
    with pytest.raises(
        ValueError, match="max_side, profile of a judge without a model has no effect"
    ):
        config_of(vision=SERVER, evaluation={"judge": {"max_side": 99, "profile": "zai"}})


def test_a_judge_without_any_model_is_refused():
    with pytest.raises(ValueError, match=r"evaluation\.judge needs a model: set vision\.backend"):
        config_of(evaluation={"judge": {}})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"url": "https://h/v1"}, "no effect without backend"),
        ({"model": "m"}, "no effect without backend"),
        ({"backend": "cloud", "model": "m"}, "available: local_transformers, openai_compatible"),
        ({"backend": "openai_compatible", "url": "https://h/v1"}, "needs a model"),
        ({"backend": "openai_compatible", "model": "m"}, "needs the server's url"),
        ({**SERVER, "backend": "local_transformers"}, "which sends nothing"),
        ({**SERVER, "profile": "acme"}, "available: generic, ollama, sglang"),
        ({**SERVER, "input_price": 1}, "set together"),
        ({**SERVER, "budget": 1}, "needs prices"),
        ({**SERVER, "profile": "zai", "budget": 1}, "needs prices"),
        ({**SERVER, "budget": -1}, "greater than or equal to 0"),
        ({**SERVER, "thinking": "perhaps"}, "valid boolean"),
    ],
)
def test_options_that_contradict_each_other_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Vision(**given)


@pytest.mark.parametrize(
    "url",
    ["api.z.ai/v4", "ftp://host/v1", "https://me:secret@host/v1", "https://host/v1?key=secret"],
)
def test_an_invalid_url_is_refused_without_repeating_its_secrets(url):
    with pytest.raises((ValueError, ConfigError), match="url") as caught:
        Vision(**{**SERVER, "url": url})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("kind", [Vision, Judge])
def test_the_key_itself_is_refused_as_name_of_a_variable(kind):
    with pytest.raises(ConfigError, match="the name of the environment variable") as caught:
        kind(**SERVER, key="sk-abc123")
    assert "abc123" not in str(caught.value)
    assert str(caught.value).startswith(f"{kind.__name__.lower()}.key")


@pytest.mark.parametrize(
    ("old", "profile", "thinking", "answers"),
    [
        ("unsaid", "generic", None, None),
        ("zai", "zai", False, "text"),
        ("chat_template", "transformers_serve", False, None),
    ],
)
def test_thinking_of_earlier_versions_is_translated(old, profile, thinking, answers):
    with pytest.warns(OldKeyWarning, match=rf"evaluation\.judge\.thinking: {old} is now "):
        config = config_of(
            evaluation={"judge": {"url": "http://h/v1", "model": "m", "thinking": old}}
        )
    judge = config.judge
    assert (judge.profile, judge.thinking, judge.answers) == (profile, thinking, answers)


def test_prices_come_from_the_config_or_the_list():
    assert list_price("zai", "GLM-4.5V").output == 1.80
    assert list_price("vllm", "glm-4.5v") is None
    own = Vision(**{**SERVER, "model": "glm-4.5v"}, profile="zai", input_price=1, output_price=2)
    assert (own.price.input, own.price.output) == (1, 2)


def test_list_prices_have_a_date_and_a_source():
    for name in server_names():
        prices = server_profile(name).prices
        if prices is not None:
            assert prices.source.startswith("https://")
            assert len(prices.date) == 10


@pytest.mark.parametrize(
    ("model", "boxes"),
    [
        ("glm-4.5v", "norm1000"),
        ("zai-org/GLM-4.6V-Flash", "norm1000"),
        ("/models/GLM-4.1V-9B-Thinking", "norm1000"),
        ("Qwen/Qwen3-VL-4B-Instruct", "norm1000"),
        ("qwen2.5-vl:7b", "pixels"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "pixels"),
        ("gpt-5", None),
    ],
)
def test_a_model_is_found_by_its_name(model, boxes):
    assert model_profile(model).boxes == boxes


def test_every_profile_of_the_file_can_be_selected():
    assert server_names() == sorted(yaml.safe_load(_FILE.read_text(encoding="utf-8"))["servers"])
