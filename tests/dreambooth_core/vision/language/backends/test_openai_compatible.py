"""HTTP requests to a loopback server that is busy, failing, slow, or sends unexpected responses."""

import base64
import io
import math
import threading
import time
from email.utils import formatdate

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionContentPartParam
from openai.types.chat.completion_create_params import ResponseFormat
from PIL import Image
from pydantic import BaseModel, Field, TypeAdapter

from dreambooth_core.config import Vision
from dreambooth_core.errors import ConfigError, StageFailed, Unanswered
from dreambooth_core.vision.language.backends import openai_compatible
from dreambooth_core.vision.language.messages import question, video_frames
from dreambooth_core.vision.language.model import VisionLanguageModel
from dreambooth_core.vision.language.spending import Account
from tests.chat_server import Reply, scripted


class Opinion(BaseModel):
    rationale: str
    score: int = Field(ge=0, le=4)


GOOD = '{"rationale": "same ears", "score": 3}'
RIGHT = Opinion(rationale="same ears", score=3)
IMAGES = [Image.new("RGB", (40, 20), "red"), Image.new("RGB", (10, 10), "blue")]
ASKED = [question("Is it the same?", IMAGES)]


OPENED: list[VisionLanguageModel] = []


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch):
    monkeypatch.setattr(openai_compatible, "FIRST_DELAY", 0.001)
    yield
    while OPENED:
        OPENED.pop().__exit__()


def model_at(server, **options) -> VisionLanguageModel:
    given = {"model": "glm-4.5v", **options}
    config = Vision(backend="openai_compatible", url=server.url, **given)
    account = Account(config.budget, config.requests_per_minute, config.price)
    OPENED.append(VisionLanguageModel(config, account=account))
    return OPENED[-1]


def ask(server, **options):
    return model_at(server, **options).ask(ASKED, Opinion)


def shown(request, turn=0):
    content = request["messages"][turn]["content"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    data = [base64.b64decode(url.removeprefix("data:image/png;base64,")) for url in urls]
    return [Image.open(io.BytesIO(one)) for one in data]


def test_images_and_question_are_sent_and_a_validated_answer_is_returned(capsys):
    reply = Reply(f"Sure!\n```json\n{GOOD}\n```", usage=(1000, 50))
    with scripted(reply) as server:
        answer = ask(server, profile="zai", max_side=64)
    assert (answer.value, answer.requests, answer.cached, answer.model) == (
        RIGHT,
        1,
        False,
        "glm-4.5v",
    )
    assert (answer.usage.input, answer.usage.output) == (1000, 50)
    assert answer.cost == pytest.approx((1000 * 0.6 + 50 * 1.8) / 1e6)
    assert 0 < answer.seconds < 60
    (sent,) = server.requests
    assert server.paths == ["/v1/chat/completions"]
    assert (sent["model"], sent["temperature"], sent["stream"]) == ("glm-4.5v", 0.01, False)
    assert [image.size for image in shown(sent)] == [(40, 20), (10, 10)]
    assert [image.getpixel((0, 0)) for image in shown(sent)] == [(255, 0, 0), (0, 0, 255)]
    text = sent["messages"][0]["content"][-1]["text"]
    assert text.startswith("Is it the same?")
    assert '"maximum":4' in text
    assert server.keys == [""]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vision:")]
    assert len(lines) == 1
    assert server.url.split("/")[2] in lines[0]


def test_frames_of_a_video_are_labelled_with_their_time():
    frames = video_frames([(0.5, IMAGES[0]), (2.0, IMAGES[1])])
    with scripted(Reply(GOOD)) as server:
        model_at(server).ask([question("What happens?", frames)], Opinion)
    content = server.requests[0]["messages"][0]["content"]
    assert [part.get("text", "") for part in content[:4]] == [
        "Frame at 0.50 s:",
        "",
        "Frame at 2.00 s:",
        "",
    ]


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"thinking": False}, {}),
        ({"profile": "zai"}, {"response_format": {"type": "json_object"}}),
        (
            {"profile": "zai", "thinking": False, "answers": "text"},
            {"thinking": {"type": "disabled"}},
        ),
        (
            {"profile": "transformers_serve", "thinking": True},
            {"chat_template_kwargs": {"enable_thinking": True}},
        ),
        (
            {"profile": "ollama", "thinking": False, "answers": "text"},
            {"reasoning_effort": "none"},
        ),
    ],
)
def test_a_profile_decides_the_fields_of_a_request(options, fields):
    with scripted(Reply(GOOD)) as server:
        ask(server, **options)
    usual = {"model", "messages", "temperature", "max_tokens", "stream"}
    sent = server.requests[0]
    assert {name: sent[name] for name in sent.keys() - usual} == fields


@pytest.mark.parametrize("profile", ["vllm", "sglang", "ollama"])
def test_schemas_are_sent_to_servers_that_support_them(profile):
    with scripted(Reply(GOOD)) as server:
        ask(server, profile=profile)
    wanted = server.requests[0]["response_format"]["json_schema"]
    assert wanted == {"name": "Opinion", "schema": Opinion.model_json_schema()}


@pytest.mark.parametrize(
    "reply",
    [
        Reply(GOOD, message={"reasoning_content": "the ears, then the tail"}),
        Reply(GOOD, message={"reasoning": "the ears, then the tail"}),
        Reply(f"<think>the ears, then the tail</think>\n{GOOD}"),
        Reply(f"the ears, then the tail</think>{GOOD}"),
    ],
)
def test_reasoning_is_kept_apart_from_the_answer(reply):
    with scripted(reply) as server:
        answer = ask(server)
    assert (answer.reasoning, answer.text) == ("the ears, then the tail", GOOD)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 529])
def test_requests_to_a_busy_or_failing_server_are_repeated(status):
    with scripted(Reply(status=status, body="later"), Reply(hang_up=True), Reply(GOOD)) as server:
        answer = ask(server)
    assert (answer.value.score, answer.requests, len(server.requests)) == (3, 3, 3)
    assert server.requests[0] == server.requests[2]


def test_a_server_that_keeps_failing_leaves_one_question_unanswered():
    with (
        scripted(Reply(status=500, body="out of memory\nat line 3")) as server,
        pytest.raises(Unanswered, match="3 times, last with status 500: out of memory at line 3"),
    ):
        ask(server, attempts=3)
    assert len(server.requests) == 3


def test_a_request_refused_with_status_400_is_not_repeated():
    with (
        scripted(Reply(status=400, body="unsafe content")) as server,
        pytest.raises(Unanswered, match="unsafe content"),
    ):
        ask(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        Reply("", message={"refusal": "I must not say."}),
        Reply("", choice={"finish_reason": "content_filter"}),
        Reply("", choice={"finish_reason": "sensitive"}),
    ],
)
def test_a_refusal_is_a_counted_failure_without_a_second_request(reply):
    with scripted(reply) as server:
        model = model_at(server)
        with pytest.raises(Unanswered, match=r"glm-4\.5v refused: .*(must not|finish reason)"):
            model.ask(ASKED, Opinion)
    assert len(server.requests) == 1
    assert (model.account.counts.failures, model.account.counts.answers) == (1, 0)


@pytest.mark.parametrize("status", [401, 403, 404, 422])
def test_a_wrong_key_model_or_option_fails_at_once_and_the_key_is_not_repeated(status, monkeypatch):
    monkeypatch.setenv("VISION_KEY", "top-secret")
    with (
        scripted(Reply(status=status, body="x" * 185 + " for top-secret you get none")) as server,
        pytest.raises(StageFailed, match="check the options") as caught,
    ):
        ask(server, key="VISION_KEY")
    assert not isinstance(caught.value, Unanswered)
    assert "top" not in str(caught.value)
    assert server.keys == ["Bearer top-secret"]
    assert len(server.requests) == 1


def test_a_missing_key_is_an_error_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("VISION_KEY", raising=False)
    config = Vision(
        backend="openai_compatible", url="http://127.0.0.1:9", model="m", key="VISION_KEY"
    )
    with pytest.raises(ConfigError, match="VISION_KEY"):
        VisionLanguageModel(config)


def test_an_unreachable_server_ends_the_run():
    with scripted(Reply(GOOD)) as server:
        pass
    with pytest.raises(StageFailed, match=r"no answer from 127\.0\.0\.1:\d+") as caught:
        ask(server, attempts=2)
    assert not isinstance(caught.value, Unanswered)


def test_a_time_out_is_followed_by_another_attempt():
    never = threading.Event()
    with scripted(Reply(GOOD, wait=never), Reply(GOOD)) as server:
        started = time.monotonic()
        assert ask(server, timeout=0.3).value.score == 3
        assert 0.25 < time.monotonic() - started < 20
        never.set()
    assert len(server.requests) == 2


def test_a_server_that_never_responds_ends_the_run():
    never = threading.Event()
    with scripted(Reply(GOOD, wait=never)) as server:
        with pytest.raises(StageFailed, match=r"no answer from .*ReadTimeout, 2 attempts"):
            ask(server, timeout=0.2, attempts=2)
        never.set()


def test_the_time_out_is_of_the_whole_response_and_not_of_a_piece():
    slow = Reply(GOOD, pause=0.1)
    with scripted(slow) as server, pytest.raises(StageFailed, match="ReadTimeout, 1 attempts"):
        ask(server, timeout=0.4, attempts=1)


def test_a_truncated_response_is_requested_again():
    with scripted(Reply(GOOD, cut_after=40), Reply(GOOD)) as server:
        assert ask(server).value.score == 3
    assert len(server.requests) == 2


def test_a_response_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(openai_compatible, "MAX_BYTES", 1000)
    with (
        scripted(Reply(GOOD + " " * 2000)) as server,
        pytest.raises(Unanswered, match="more than 1000 bytes"),
    ):
        ask(server)


@pytest.mark.parametrize("header", ["0.4", "date"])
def test_retry_after_is_honoured(header):
    later = formatdate(time.time() + 2, usegmt=True) if header == "date" else header
    with scripted(Reply(status=429, headers={"Retry-After": later}), Reply(GOOD)) as server:
        started = time.monotonic()
        assert ask(server).value.score == 3
        assert 0.35 < time.monotonic() - started < 20


@pytest.mark.parametrize("header", ["-5", "nan", "soon", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_an_invalid_retry_after_is_ignored(header):
    with scripted(Reply(status=503, headers={"Retry-After": header}), Reply(GOOD)) as server:
        assert ask(server).value.score == 3


def test_a_retry_after_beyond_the_limit_fails_the_question():
    with (
        scripted(Reply(status=429, headers={"Retry-After": "3600"}), Reply(GOOD)) as server,
        pytest.raises(Unanswered, match="is 3600 s, more than 120"),
    ):
        ask(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        "<html>welcome</html>",
        "{}",
        "[" * 100_000,
        '{"choices": []}',
        '{"choices": [null]}',
        '{"choices": [{"message": null}]}',
        '{"choices": [{"message": {"content": [1]}}]}',
    ],
)
def test_a_response_that_is_not_a_chat_completion_is_no_answer(body):
    with (
        scripted(Reply(body=body)) as server,
        pytest.raises(Unanswered, match="not a chat completion"),
    ):
        ask(server)


def test_no_proxy_is_used_for_loopback_addresses(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with scripted(Reply(GOOD)) as server:
        assert ask(server, attempts=1).value.score == 3


def alternatives(**logs: float) -> Reply:
    """A response with log-probabilities of the first token's alternatives."""
    top = [{"token": token, "logprob": log, "bytes": None} for token, log in logs.items()]
    content = [{**top[0], "top_logprobs": top}]
    return Reply("A", choice={"logprobs": {"content": content}})


def test_options_get_the_probabilities_of_their_letters():
    logs = {"B": math.log(0.5), " A": math.log(0.2), "A": math.log(0.1), "The": math.log(0.2)}
    with scripted(alternatives(**logs)) as server:
        choice = model_at(server, profile="vllm").choose(ASKED, ["yes", "no", "unclear"])
    assert choice.probabilities == pytest.approx({"yes": 0.375, "no": 0.625, "unclear": 0})
    assert choice.mass == pytest.approx(0.8)
    (sent,) = server.requests
    assert (sent["logprobs"], sent["top_logprobs"], sent["max_tokens"]) == (True, 20, 1)
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}
    assert "A: yes\nB: no\nC: unclear" in sent["messages"][0]["content"][-1]["text"]


def test_a_server_without_probabilities_gives_none_without_a_request():
    with scripted(Reply("A")) as server:
        assert model_at(server, profile="zai").choose(ASKED, ["yes", "no"]) is None
    assert server.requests == []


def test_a_server_that_ignores_log_probabilities_gives_none():
    with scripted(Reply("A")) as server:
        assert model_at(server, profile="vllm").choose(ASKED, ["yes", "no"]) is None


def test_options_of_probability_zero_are_no_choice():
    with scripted(alternatives(The=-0.1)) as server:
        model = model_at(server, profile="vllm")
        with pytest.raises(Unanswered, match="all options have probability 0"):
            model.choose(ASKED, ["yes", "no"])
    assert model.account.counts.failures == 1


def test_the_official_client_sends_the_same_message():
    with scripted(Reply(GOOD, usage=(7, 3))) as server:
        ask(server)
        sent = server.requests[0]
        with official_client(server) as client:
            fields = {
                name: sent[name] for name in ("model", "messages", "temperature", "max_tokens")
            }
            found = client.chat.completions.create(**fields)
    assert found.choices[0].message.content == GOOD
    assert found.usage.prompt_tokens == 7
    assert server.requests[1]["messages"] == sent["messages"]


@pytest.mark.parametrize("profile", ["generic", "vllm", "sglang", "ollama", "zai"])
def test_requests_have_the_official_types(profile):
    with scripted(Reply(GOOD)) as server:
        ask(server, profile=profile, model="m", thinking=False)
    (sent,) = server.requests
    (message,) = sent["messages"]
    assert message.keys() == {"role", "content"}
    assert message["role"] == "user"
    # part by part: pydantic validates the iterable of a whole message only when it is read
    parts = TypeAdapter(list[ChatCompletionContentPartParam]).validate_python(message["content"])
    assert len(parts) == 3
    if "response_format" in sent:
        TypeAdapter(ResponseFormat).validate_python(sent["response_format"])


def test_replies_of_the_chat_server_have_the_official_type():
    top = [{"token": "A", "logprob": -0.1, "bytes": None}]
    log = {"logprobs": {"content": [{**top[0], "top_logprobs": top}], "refusal": None}}
    with scripted(Reply(GOOD, usage=(7, 3), choice=log, message={"refusal": None})) as server:
        body = httpx.post(f"{server.url}/chat/completions", json={"messages": []}).json()
    ChatCompletion.model_validate(body, strict=True)


@pytest.mark.parametrize(
    ("reply", "raised", "kind"),
    [
        (Reply(status=429), openai.RateLimitError, Unanswered),
        (Reply(status=500), openai.InternalServerError, Unanswered),
        (Reply(status=400), openai.BadRequestError, Unanswered),
        (Reply(status=401), openai.AuthenticationError, StageFailed),
        (Reply(status=404), openai.NotFoundError, StageFailed),
        (Reply(hang_up=True), openai.APIConnectionError, Unanswered),
        (Reply(GOOD, cut_after=30), openai.APIConnectionError, Unanswered),
        (Reply(wait=threading.Event()), openai.APITimeoutError, StageFailed),
    ],
    ids=["429", "500", "400", "401", "404", "closed", "cut", "time-out"],
)
def test_faults_are_errors_of_the_official_client_and_of_ours(reply, raised, kind):
    """The loopback server's faults are those that a public client knows; ours classifies each."""
    with scripted(reply) as server, official_client(server, timeout=0.5) as client:
        with pytest.raises(raised):
            client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "Hello"}]
            )
        with pytest.raises(kind) as caught:
            ask(server, attempts=1, timeout=0.5)
    assert type(caught.value) is kind


def test_both_clients_repeat_a_busy_request_and_get_the_answer():
    busy = Reply(status=429, headers={"Retry-After": "0.01"})
    with scripted(busy, Reply(GOOD), busy, Reply(GOOD)) as server:
        with official_client(server, max_retries=1) as client:
            found = client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "Hello"}]
            )
        assert found.choices[0].message.content == GOOD
        assert ask(server).value == RIGHT
    assert len(server.requests) == 4


def official_client(server, **options) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=server.url, api_key="none", **{"max_retries": 0, "timeout": 60, **options}
    )
