"""Servers with OpenAI's chat interface: Z.ai's GLM-4.5V, vLLM, SGLang, `transformers serve`.

Of a server no more is relied on than that it takes messages with pictures: whatever it promises of
its answers, they are checked here.
"""

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel

from dreambooth_core.config import Endpoint
from dreambooth_core.errors import ConfigError, StageFailed, Unanswered
from dreambooth_core.vision.language.answers import asked_for, parsed
from dreambooth_core.vision.language.images import data_url, encoded

if TYPE_CHECKING:
    from PIL.Image import Image

A = TypeVar("A", bound=BaseModel)
Messages = list[dict[str, Any]]

CONNECT_SECONDS = 8.0
FIRST_DELAY, LONGEST_DELAY = 0.5, 8.0
"""Seconds between two attempts: at most the first, doubled each time, up to the longest."""
LONGEST_WISH = 60.0
"""Seconds that a server may ask to be left alone; a longer wish is cut to this."""
AGAIN = frozenset({408, 409, 425, 429})
"""Besides 5xx, the statuses that say: later."""
HOPELESS = frozenset({401, 402, 403, 404, 422})
"""Statuses that every question would get: key, account, model or an option is not what is expected."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_NO_THINKING: dict[str, dict[str, Any]] = {
    "unsaid": {},
    "zai": {"thinking": {"type": "disabled"}},
    "chat_template": {"chat_template_kwargs": {"enable_thinking": False}},
}


@dataclass(frozen=True)
class _Trouble:
    """Why a request brought no answer, where another one may."""

    said: str
    wish: float | None = None
    """Seconds that the server asks to be left alone."""
    away: bool = False
    """Nobody took the request, or nobody answered in time."""


class OpenAICompatible:
    """A `VisionModel` behind HTTP; may be asked from several threads at once."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Raises `ConfigError` when the variable with the key is not set; nothing is sent yet."""
        self._endpoint = endpoint
        self._key = _key(endpoint)
        self._where = urlsplit(endpoint.url).netloc
        local = urlsplit(endpoint.url).hostname in _LOOPBACK
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(endpoint.timeout, connect=CONNECT_SECONDS),
            trust_env=not local,  # a proxy is for the world outside
        )

    def ask(self, images: "Sequence[Image]", question: str, schema: type[A]) -> A:
        """See `VisionModel`; an answer that does not fit is sent back once, with what is wrong."""
        shown = [data_url(encoded(image, self._endpoint.max_side)) for image in images]
        text = {"type": "text", "text": f"{question}\n\n{asked_for(schema)}"}
        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in shown]
        messages: Messages = [{"role": "user", "content": [*pictures, text]}]
        fault = ""
        for _ in range(2):
            answer = self._complete(messages, schema)
            try:
                return parsed(answer, schema)
            except ValueError as error:
                fault = str(error)
            wrong = f"Your answer does not fit: {fault}. {asked_for(schema)}"
            messages += [
                {"role": "assistant", "content": answer},
                {"role": "user", "content": wrong},
            ]
        raise Unanswered(f"{self._endpoint.model} gave two answers that do not fit: {fault}")

    def _complete(self, messages: Messages, schema: type[BaseModel]) -> str:
        """What the model writes next; asked again while the server is busy, broken or away."""
        document = _document(self._endpoint, messages, schema)
        attempts = self._endpoint.attempts
        trouble = _Trouble("")
        for attempt in range(attempts):
            if attempt:
                time.sleep(_jittered(attempt - 1) if trouble.wish is None else trouble.wish)
            answer = self._attempt(document)
            if isinstance(answer, str):
                return answer
            trouble = answer
        if trouble.away:
            raise StageFailed(
                f"nobody answers at {self._where} ({trouble.said}, {attempts} attempts): see that "
                f"{self._endpoint.model} is served there, or leave evaluation.judge out"
            )
        raise Unanswered(f"{self._where} failed {attempts} times, last with {trouble.said}")

    def _attempt(self, document: dict[str, Any]) -> "str | _Trouble":
        """One request; raises for what no further one would mend."""
        try:
            url = f"{self._endpoint.url.rstrip('/')}/chat/completions"
            answer = self._client.post(url, json=document)
        except httpx.RequestError as error:
            away = isinstance(error, httpx.ConnectError | httpx.TimeoutException)
            return _Trouble(type(error).__name__, away=away)
        if answer.is_success:
            return _written(answer)
        status = answer.status_code
        said = f"status {status}: {self._unkeyed(answer.text)}"
        if status in HOPELESS:
            raise StageFailed(
                f"{self._where} refuses {self._endpoint.model} with {said}; "
                "check the options of evaluation.judge, and the key"
            )
        if status not in AGAIN and status < 500:
            raise Unanswered(f"{self._where} refuses a question with {said}")
        return _Trouble(said, _wish(answer))

    def _unkeyed(self, text: str) -> str:
        """One short line without the key, which some servers repeat."""
        line = " ".join(text.split())
        return (line.replace(self._key, "***") if self._key else line)[:200]


def _key(endpoint: Endpoint) -> str:
    if endpoint.key is None:
        return ""
    key = os.environ.get(endpoint.key, "").strip()
    if not key:
        raise ConfigError(f"the environment variable {endpoint.key} with the key is not set")
    return key


def _document(endpoint: Endpoint, messages: Messages, schema: type[BaseModel]) -> dict[str, Any]:
    """The request's JSON."""
    shapes: dict[str, dict[str, Any]] = {
        "text": {},
        "json_object": {"response_format": {"type": "json_object"}},
        "json_schema": {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": schema.__name__, "schema": schema.model_json_schema()},
            }
        },
    }
    return {
        "model": endpoint.model,
        "messages": messages,
        "temperature": endpoint.temperature,
        "max_tokens": endpoint.max_tokens,
        "stream": False,
        **_NO_THINKING[endpoint.thinking],
        **shapes[endpoint.answers],
    }


def _written(answer: httpx.Response) -> str:
    """The model's words; raises `Unanswered` for a success that is no chat completion."""
    try:
        content = answer.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        content = 0
    if content is not None and not isinstance(content, str):
        raise Unanswered("the server's answer is no chat completion")
    return content or ""


def _jittered(attempt: int) -> float:
    """Seconds before the next attempt, anywhere below a bound that doubles: clients come back apart."""
    return random.uniform(0, min(LONGEST_DELAY, FIRST_DELAY * 2**attempt))


def _wish(answer: httpx.Response) -> float | None:
    """Seconds that `Retry-After` asks for, in either of its forms; None when it is not there."""
    asked = answer.headers.get("Retry-After", "")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(asked).timestamp() - time.time()
        except ValueError:
            return None
    return min(seconds, LONGEST_WISH) if seconds > 0 else 0.0
