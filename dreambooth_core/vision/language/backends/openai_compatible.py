"""Servers with OpenAI's chat interface: Z.ai, vLLM, SGLang, Ollama, `transformers serve`.

Their differences are in `config/vision_profiles.yaml`.
"""

import json
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel

from dreambooth_core.config import Vision
from dreambooth_core.config.vision_profiles import model_profile, server_profile
from dreambooth_core.errors import ConfigError, StageFailed, Unanswered
from dreambooth_core.vision.language.answers import Usage, reasoning_in, without_reasoning
from dreambooth_core.vision.language.backends import Completion
from dreambooth_core.vision.language.images import data_url
from dreambooth_core.vision.language.messages import EncodedMessage, EncodedPicture
from dreambooth_core.vision.language.spending import Account

Json = dict[str, Any]

CONNECT_SECONDS = 8.0
FIRST_DELAY, LONGEST_DELAY = 0.5, 8.0
"""Seconds between attempts: random, bound doubled per attempt from the first to the longest."""
LONGEST_RETRY_AFTER = 120.0
"""Longest `Retry-After` in seconds that is waited for; a longer one fails the question."""
MAX_BYTES = 8 * 1024 * 1024
"""Size limit of a response."""
TRY_AGAIN = frozenset({408, 409, 425, 429})
"""Statuses besides 5xx after which the request is repeated."""
FATAL = frozenset({401, 402, 403, 404, 422})
"""Statuses that concern all questions: key, account, model or an option is wrong."""
REFUSALS = frozenset({"content_filter", "sensitive"})
"""Finish reasons of content filters (OpenAI, Z.ai)."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TOKENS_PER_MESSAGE = 16
_MIN_IMAGE_TOKENS = 64


@dataclass(frozen=True)
class _Failure:
    """A failed attempt that may be repeated."""

    reason: str
    retry_after: float | None = None
    """Seconds, from the `Retry-After` header."""
    unreachable: bool = False
    """No connection, or a time-out."""


def open(config: Vision, account: Account) -> "OpenAICompatible":
    """Sends nothing; raises `ConfigError` if the environment variable of the key is not set."""
    return OpenAICompatible(config, account)


class OpenAICompatible:
    """A `Backend` behind HTTP."""

    def __init__(self, config: Vision, account: Account) -> None:
        self._config, self._account = config, account
        self._url = str(config.url)
        self._profile = server_profile(config.profile)
        self._key = _key(config)
        self._host = urlsplit(self._url).netloc
        local = urlsplit(self._url).hostname in _LOOPBACK
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(config.timeout, connect=CONNECT_SECONDS),
            trust_env=not local,  # no proxy for loopback addresses
        )

    def complete(
        self, messages: Sequence[EncodedMessage], schema: type[BaseModel] | None
    ) -> Completion:
        """See `Backend`; requests are repeated while the server is busy, failing or unreachable."""
        thinking = self._config.thinking
        switches = {None: {}, False: self._profile.thinking_off, True: self._profile.thinking_on}
        form = self._response_format(schema)
        document = {
            **self._document(messages, self._config.max_tokens),
            **switches[thinking],
            **form,
        }
        # some servers also add the schema to the prompt
        bound = Usage(len(json.dumps(form))) + self._bound(messages, self._config.max_tokens)
        response, requests = self._send(document, bound)
        choice = _choice_of(response)
        message = choice["message"]
        if refusal := message.get("refusal") or _refused(choice):
            raise Unanswered(f"{self._config.model} refused: {self._short(str(refusal))}")
        content = message.get("content") or ""
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        if not (isinstance(content, str) and isinstance(reasoning, str)):
            raise Unanswered(f"the response of {self._host} is not a chat completion")
        return Completion(
            text=without_reasoning(content).strip(),
            reasoning=reasoning.strip() or reasoning_in(content),
            usage=_usage(response) or bound,
            cut=choice.get("finish_reason") == "length",
            requests=requests,
        )

    def first_token(
        self, messages: Sequence[EncodedMessage], labels: Sequence[str]
    ) -> list[float] | None:
        """See `Backend`; from the log-probabilities of the first token."""
        if self._profile.probabilities == "none":
            return None
        document = {
            **self._document(messages, 1),
            **self._profile.thinking_off,
            "logprobs": True,
            "top_logprobs": self._profile.top_logprobs,
        }
        response, _ = self._send(document, self._bound(messages, 1))
        try:
            first = _choice_of(response)["logprobs"]["content"][0]
            alternatives = [
                (str(one["token"]), float(one["logprob"])) for one in first["top_logprobs"]
            ]
        except (LookupError, TypeError, ValueError):
            return None  # the server ignored `logprobs`
        return [
            math.fsum(math.exp(log) for token, log in alternatives if token.strip() == label)
            for label in labels
        ]

    def close(self) -> None:
        """See `Backend`."""
        self._client.close()

    def _document(self, messages: Sequence[EncodedMessage], max_tokens: int) -> Json:
        return {
            "model": self._config.model,
            "messages": [_message(one) for one in messages],
            "temperature": self._config.temperature,
            "max_tokens": max_tokens,
            "stream": False,
        }

    def _response_format(self, schema: type[BaseModel] | None) -> Json:
        style = self._config.answers or self._profile.answers
        if schema is None or style == "text":
            return {}
        if style == "json_object":
            return {"response_format": {"type": style}}
        form = {"name": schema.__name__, "schema": schema.model_json_schema()}
        return {"response_format": {"type": style, "json_schema": form}}

    def _bound(self, messages: Sequence[EncodedMessage], max_tokens: int) -> Usage:
        """Upper bound of the tokens that the server counts; one token per byte of text."""
        pixels = model_profile(self._config.model).pixels_per_token
        tokens = sum(
            _TOKENS_PER_MESSAGE
            + len(message.text.encode())
            + sum(_image_tokens(picture, pixels) for picture in message.pictures)
            for message in messages
        )
        return Usage(tokens, max_tokens)

    def _send(self, document: Json, bound: Usage) -> tuple[Json, int]:
        """The response and the number of requests sent."""
        self._announce()
        attempts = self._config.attempts
        failure = _Failure("")
        for attempt in range(attempts):
            if attempt:
                time.sleep(self._delay(attempt - 1, failure))
            found = self._attempt(document, bound)
            if not isinstance(found, _Failure):
                return found, attempt + 1
            failure = found
        if failure.unreachable:
            raise StageFailed(
                f"no answer from {self._host} ({failure.reason}, {attempts} attempts): check that "
                f"{self._config.model} is served there, or raise vision.timeout"
            )
        raise Unanswered(f"{self._host} failed {attempts} times, last with {failure.reason}")

    def _attempt(self, document: Json, bound: Usage) -> "Json | _Failure":
        """One request, reserved and settled in the account; raises if a repetition cannot succeed."""
        self._account.book(bound)
        used: Usage | None = None  # counted at its bound if the server may have billed it
        try:
            status, headers, body = self._post(document)
            response = _json(body)
            used = _usage(response) if status == 200 else Usage()
        except httpx.ConnectError as error:
            used = Usage()
            return _Failure(type(error).__name__, unreachable=True)
        except httpx.RequestError as error:
            return _Failure(
                type(error).__name__, unreachable=isinstance(error, httpx.TimeoutException)
            )
        finally:
            self._account.settle(bound, used)
        if 200 <= status < 300:
            return response
        return self._failure(status, headers, body)

    def _failure(self, status: int, headers: Mapping[str, str], body: bytes) -> _Failure:
        """The failure for an error status; raises if the request must not be repeated."""
        reason = f"status {status}: {self._short(body.decode(errors='replace'))}"
        if status in FATAL:
            raise StageFailed(
                f"{self._host} refuses {self._config.model} with {reason}; "
                "check the options of vision or evaluation.judge, and the key"
            )
        if status not in TRY_AGAIN and status < 500:
            raise Unanswered(f"{self._host} refuses the request with {reason}")
        return _Failure(reason, _retry_after(headers.get("Retry-After", "")))

    def _post(self, document: Json) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body; raises `httpx.RequestError`, also when the body exceeds the timeout."""
        url = f"{self._url.rstrip('/')}/chat/completions"
        deadline = time.monotonic() + self._config.timeout
        body = bytearray()
        with self._client.stream("POST", url, json=document) as answer:
            for part in answer.iter_bytes():
                body += part
                if len(body) > MAX_BYTES:
                    raise Unanswered(f"{self._host} sent a response of more than {MAX_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the response took longer than the timeout")
        return answer.status_code, answer.headers, bytes(body)

    def _delay(self, attempt: int, failure: _Failure) -> float:
        """Seconds until the next attempt: `Retry-After`, else random below an exponential bound."""
        seconds = failure.retry_after
        if seconds is None:
            return random.uniform(0, min(LONGEST_DELAY, FIRST_DELAY * 2**attempt))
        if seconds > LONGEST_RETRY_AFTER:
            raise Unanswered(
                f"Retry-After of {self._host} is {seconds:.0f} s, more than {LONGEST_RETRY_AFTER:.0f}, "
                f"with {failure.reason}"
            )
        return seconds

    def _announce(self) -> None:
        """Log destination, image size and budget before the first request."""
        config = self._config
        budget = "no budget" if config.budget is None else f"a budget of {config.budget:g}"
        plain = "" if self._url.startswith("https") else ", not encrypted"
        self._account.announce(
            f"vision: questions and images (without metadata, {config.max_side} pixels at most) are sent to "
            f"{self._host}{plain}, for {config.model}, with {budget}"
        )

    def _short(self, text: str) -> str:
        """One line of at most 200 characters; the key, which some servers echo, is masked."""
        line = " ".join(text.split())
        return (line.replace(self._key, "***") if self._key else line)[:200]


def _key(config: Vision) -> str:
    if config.key is None:
        return ""
    key = os.environ.get(config.key, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {config.key} of the API key is not set: export it"
        )
    return key


def _message(message: EncodedMessage) -> Json:
    """The message in OpenAI's format; images precede the text."""
    if not message.pictures:
        return {"role": message.role, "content": message.text}
    parts: list[Json] = []
    for picture in message.pictures:
        if picture.label:
            parts.append({"type": "text", "text": picture.label})
        parts.append({"type": "image_url", "image_url": {"url": data_url(picture.png)}})
    return {"role": message.role, "content": [*parts, {"type": "text", "text": message.text}]}


def _image_tokens(picture: EncodedPicture, pixels_per_token: int) -> int:
    """Upper bound of the tokens of an image; models round its sides up to whole patches."""
    side = math.isqrt(pixels_per_token)
    width, height = (math.ceil(edge / side) + 1 for edge in picture.size)
    label = len(picture.label.encode())
    return max(_MIN_IMAGE_TOKENS, width * height) + label


def _json(body: bytes) -> Json:
    """The JSON object of a body, empty if it is not one."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _choice_of(response: Json) -> Json:
    """The first choice; raises `Unanswered` if the response is not a chat completion."""
    try:
        choice: Json = response["choices"][0]
        choice["message"].get("content")
    except (LookupError, TypeError, AttributeError):
        raise Unanswered("the server's response is not a chat completion") from None
    return choice


def _refused(choice: Json) -> str:
    reason = choice.get("finish_reason")
    return f"finish reason {reason}" if reason in REFUSALS else ""


def _usage(response: Json) -> Usage | None:
    """The server's token counts; None without them."""
    try:
        counted = response["usage"]
        details = counted.get("prompt_tokens_details") or {}
        return Usage(
            int(counted["prompt_tokens"]),
            int(counted["completion_tokens"]),
            int(details.get("cached_tokens") or 0),
        )
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def _retry_after(header: str) -> float | None:
    """Seconds of a `Retry-After` header (number or HTTP date); None if it is invalid."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return seconds if seconds > 0 else 0.0
