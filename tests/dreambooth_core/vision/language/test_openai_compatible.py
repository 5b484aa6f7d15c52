"""Asked over real HTTP, of a server that breaks, dawdles, chatters and lies."""

import base64
import io
import threading
import time
from email.utils import formatdate

import pytest
from PIL import Image
from pydantic import BaseModel, Field

from dreambooth_core.config import Endpoint
from dreambooth_core.errors import ConfigError, StageFailed, Unanswered
from dreambooth_core.vision.language import openai_compatible
from dreambooth_core.vision.language.openai_compatible import OpenAICompatible
from tests.chat_server import Reply, serving


class Opinion(BaseModel):
    rationale: str
    score: int = Field(ge=0, le=4)


GOOD = '{"rationale": "same ears", "score": 3}'
PICTURES = [Image.new("RGB", (40, 20), "red"), Image.new("RGB", (10, 10), "blue")]


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(openai_compatible, "FIRST_DELAY", 0.001)


def scripted(*replies: Reply):
    return serving(lambda number, _: replies[min(number, len(replies) - 1)])


def ask(server, **options):
    endpoint = Endpoint(url=server.url, model="glm-4.5v", **options)
    return OpenAICompatible(endpoint).ask(PICTURES, "Is it the same?", Opinion)


def test_pictures_and_question_go_out_and_a_checked_answer_comes_back():
    with scripted(Reply(f"Sure!\n```json\n{GOOD}\n```")) as server:
        assert ask(server, max_side=64) == Opinion(rationale="same ears", score=3)
    (sent,) = server.requests
    assert server.paths == ["/v1/chat/completions"]
    assert (sent["model"], sent["temperature"], sent["stream"]) == ("glm-4.5v", 0.01, False)
    *pictures, text = sent["messages"][0]["content"]
    shown = [item["image_url"]["url"].removeprefix("data:image/png;base64,") for item in pictures]
    opened = [Image.open(io.BytesIO(base64.b64decode(data))) for data in shown]
    assert [picture.size for picture in opened] == [(40, 20), (10, 10)]
    assert [picture.getpixel((0, 0)) for picture in opened] == [(255, 0, 0), (0, 0, 255)]
    assert text["text"].startswith("Is it the same?")
    assert '"maximum":4' in text["text"]
    assert not sent.keys() & {"thinking", "chat_template_kwargs", "response_format"}
    assert server.keys == [""]


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"thinking": "zai"}, "thinking", {"type": "disabled"}),
        ({"thinking": "chat_template"}, "chat_template_kwargs", {"enable_thinking": False}),
        ({"answers": "json_object"}, "response_format", {"type": "json_object"}),
    ],
)
def test_each_server_is_told_in_its_own_way(options, field, value):
    with scripted(Reply(GOOD)) as server:
        ask(server, **options)
    assert server.requests[0][field] == value


def test_a_server_that_keeps_to_schemas_gets_one():
    with scripted(Reply(GOOD)) as server:
        ask(server, answers="json_schema")
    wanted = server.requests[0]["response_format"]["json_schema"]
    assert wanted == {"name": "Opinion", "schema": Opinion.model_json_schema()}


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 529])
def test_a_busy_or_broken_server_is_asked_again(status):
    with scripted(Reply(status=status, body="later"), Reply(hang_up=True), Reply(GOOD)) as server:
        assert ask(server).score == 3
    assert len(server.requests) == 3
    assert server.requests[0] == server.requests[2]


def test_a_server_that_stays_broken_leaves_one_question_unanswered():
    with (
        scripted(Reply(status=500, body="out of memory\nat line 3")) as server,
        pytest.raises(Unanswered, match="3 times, last with status 500: out of memory at line 3"),
    ):
        ask(server, attempts=3)
    assert len(server.requests) == 3


def test_a_question_that_is_refused_is_not_asked_again():
    with (
        scripted(Reply(status=400, body="unsafe content")) as server,
        pytest.raises(Unanswered, match="unsafe content"),
    ):
        ask(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 422])
def test_a_wrong_key_model_or_option_ends_the_asking_and_the_key_is_not_repeated(
    status, monkeypatch
):
    monkeypatch.setenv("JUDGE_KEY", "top-secret")
    with (
        scripted(Reply(status=status, body="x" * 185 + " for top-secret you get none")) as server,
        pytest.raises(StageFailed, match="check the options") as caught,
    ):
        ask(server, key="JUDGE_KEY")
    assert not isinstance(caught.value, Unanswered)
    assert "top" not in str(caught.value)
    assert server.keys == ["Bearer top-secret"]
    assert len(server.requests) == 1


def test_a_key_that_is_not_there_is_missed_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="JUDGE_KEY"):
        OpenAICompatible(Endpoint(url="http://127.0.0.1:9", model="m", key="JUDGE_KEY"))


def test_nobody_there_is_said_so():
    with scripted(Reply(GOOD)) as server:
        pass
    with pytest.raises(StageFailed, match=r"nobody answers at 127\.0\.0\.1:\d+") as caught:
        ask(server, attempts=2)
    assert not isinstance(caught.value, Unanswered)


def test_a_slow_answer_is_given_up_and_asked_for_again():
    never = threading.Event()
    with scripted(Reply(GOOD, wait=never), Reply(GOOD)) as server:
        started = time.monotonic()
        assert ask(server, timeout=0.3).score == 3
        assert 0.25 < time.monotonic() - started < 5
        never.set()
    assert len(server.requests) == 2


def test_nobody_waits_for_a_server_that_never_answers():
    never = threading.Event()
    with scripted(Reply(GOOD, wait=never)) as server:
        with pytest.raises(StageFailed, match=r"nobody answers at .*ReadTimeout, 2 attempts"):
            ask(server, timeout=0.2, attempts=2)
        never.set()


@pytest.mark.parametrize("wish", ["0.4", "date"])
def test_the_server_says_when_to_come_back(wish):
    later = formatdate(time.time() + 2, usegmt=True) if wish == "date" else wish
    with scripted(Reply(status=429, headers={"Retry-After": later}), Reply(GOOD)) as server:
        started = time.monotonic()
        assert ask(server).score == 3
        assert 0.35 < time.monotonic() - started < 5


@pytest.mark.parametrize("wish", ["-5", "nan", "soon", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_wish_without_sense_holds_nobody_up(wish):
    with scripted(Reply(status=503, headers={"Retry-After": wish}), Reply(GOOD)) as server:
        assert ask(server).score == 3


def test_a_long_wish_is_cut_short(monkeypatch):
    monkeypatch.setattr(openai_compatible, "LONGEST_WISH", 0.05)
    with scripted(Reply(status=429, headers={"Retry-After": "1e9"}), Reply(GOOD)) as server:
        assert ask(server).score == 3


def test_an_answer_that_does_not_fit_is_sent_back_once_with_what_is_wrong():
    with scripted(Reply('{"rationale": "x", "score": 7}'), Reply(GOOD)) as server:
        assert ask(server).score == 3
    first, second = server.requests
    assert second["messages"][0] == first["messages"][0]
    assert second["messages"][1] == {
        "role": "assistant",
        "content": '{"rationale": "x", "score": 7}',
    }
    assert "at score" in second["messages"][2]["content"]


@pytest.mark.parametrize("content", ["I cannot say.", "", None, '{"score": 2}'])
def test_two_answers_that_do_not_fit_are_no_answer(content):
    with scripted(Reply(content)) as server, pytest.raises(Unanswered, match="two answers"):
        ask(server)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "body",
    [
        "<html>welcome</html>",
        "{}",
        '{"choices": []}',
        '{"choices": [{"message": {"content": [1]}}]}',
    ],
)
def test_a_success_that_is_no_chat_completion_is_no_answer(body):
    with (
        scripted(Reply(body=body)) as server,
        pytest.raises(Unanswered, match="no chat completion"),
    ):
        ask(server)


def test_a_proxy_does_not_hear_what_is_asked_on_this_machine(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with scripted(Reply(GOOD)) as server:
        assert ask(server, attempts=1).score == 3


@pytest.mark.parametrize(
    "url",
    ["api.z.ai/v4", "ftp://host/v1", "https://me:secret@host/v1", "https://host/v1?key=secret"],
)
def test_an_address_is_a_public_one(url):
    with pytest.raises((ValueError, ConfigError), match="url") as caught:
        Endpoint(url=url, model="m")
    assert "secret" not in str(caught.value)


def test_the_key_itself_is_no_name_of_a_variable():
    with pytest.raises(ConfigError, match="the name of the environment variable") as caught:
        Endpoint(url="https://host/v1", model="m", key="sk-abc123")
    assert "abc123" not in str(caught.value)
