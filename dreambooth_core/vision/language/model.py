"""The vision-language model of a config: validated answers, probabilities of options, boxes."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from pydantic import BaseModel

from dreambooth_core.config import Vision
from dreambooth_core.config.vision_profiles import model_profile
from dreambooth_core.digests import digest_json, digest_of
from dreambooth_core.errors import ConfigError, Unanswered
from dreambooth_core.vision.language.answers import (
    Answer,
    Choice,
    Usage,
    parsed,
    schema_instruction,
)
from dreambooth_core.vision.language.backends import open_backend
from dreambooth_core.vision.language.boxes import Box, boxes_in, boxes_instruction
from dreambooth_core.vision.language.images import encoded
from dreambooth_core.vision.language.messages import (
    EncodedMessage,
    EncodedPicture,
    Message,
    Picture,
    question,
)
from dreambooth_core.vision.language.spending import Account, account_of

if TYPE_CHECKING:
    from PIL.Image import Image

A = TypeVar("A", bound=BaseModel)
T = TypeVar("T")

CODE_VERSION = 1
"""Part of cache keys; incremented by hand when the request built from the same messages changes."""
_DECIDING = {
    *("backend", "model", "revision", "url", "profile"),
    *("thinking", "answers", "temperature", "max_tokens", "max_side"),
}
"""Options that affect answers."""


class AnswerCache(Protocol):
    """Answers by key of 64 hex digits; `storage.answer_cache` implements it on the store."""

    def get(self, key: str) -> bytes | None:
        """The stored answer, None if absent."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Store an answer, replacing an earlier one."""
        ...


def deciding(config: Vision) -> dict[str, object]:
    """The options that affect answers, for cache keys and names of scores."""
    return config.model_dump(mode="json", include=_DECIDING)


class VisionLanguageModel:
    """Client for questions about images; a context manager, thread-safe.

    Methods raise `Unanswered` (and count a failure) when one question has no usable answer, and any
    other `StageFailed` when no request can succeed (key refused, server down, budget spent).
    """

    def __init__(
        self, config: Vision, cache: AnswerCache | None = None, account: Account | None = None
    ) -> None:
        """Open the backend without loading or sending; raises `ConfigError` without a backend or key.

        `account` defaults to the process-wide account of this model.
        """
        self._config, self._cache = config, cache
        self._profile = model_profile(config.model)
        self.account = account_of(config) if account is None else account
        self._backend = open_backend(config, self.account)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._backend.close()

    @property
    def max_side(self) -> int:
        """Longer side in pixels to which images are scaled down: that of the config or the profile."""
        return min(self._config.max_side, self._profile.max_side)

    @property
    def max_images(self) -> int | None:
        """Most images of one question; None without a known limit."""
        return self._profile.max_images

    @property
    def name(self) -> str:
        """`vision.model`."""
        return self._config.model

    def ask(self, messages: Sequence[Message], schema: type[A]) -> Answer[A]:
        """The model's answer to the last message, validated against the schema.

        An invalid answer is sent back once together with its validation errors.
        """
        return self._answered(
            self._encoded(messages),
            schema_instruction(schema),
            lambda text: parsed(text, schema),
            schema,
        )

    def choose(self, messages: Sequence[Message], options: Sequence[str]) -> Choice | None:
        """Probabilities of 2 to 20 options as the answer to the last message.

        Options are presented as letters in this order; models can be biased towards a position, so
        average over several orders if needed. None if the backend has no probabilities.
        """
        if not 2 <= len(options) == len({*options}) <= 20:
            raise ConfigError("choose() takes 2 to 20 different options")
        letters = ascii_uppercase[: len(options)]
        lines = "\n".join(f"{letter}: {one}" for letter, one in zip(letters, options, strict=True))
        instruction = f"Choose one:\n{lines}\nAnswer with its letter and nothing else."
        prompt = _with_instruction(self._encoded(messages), instruction)
        key = self._key(prompt, "first token", letters)
        found = self._cached(
            key, lambda document: _choice(options, document["shares"], cached=True)
        )
        if found is not None:
            return found

        with self._counted_failures():
            shares = self._backend.first_token(prompt, letters)
            if shares is None:
                return None
            choice = _choice(options, shares, cached=False)
        self._keep(key, {"shares": shares})
        return choice

    def locate(self, image: "Image", subject: str) -> Answer[tuple[Box, ...]]:
        """Boxes of every `subject` ("red mug") in an image, empty without one.

        Raises `ConfigError` if the model's profile has no coordinate style.
        """
        style = self._profile.boxes
        if style is None:
            raise ConfigError(
                f"the coordinate style of boxes is not known for {self._config.model}: use a model of "
                "config/vision_profiles.yaml, or add an entry there"
            )
        messages = self._encoded([question(f"Locate every {subject} in the image.", [image])])
        size = messages[0].pictures[0].size
        return self._answered(
            messages, boxes_instruction(style, size), lambda text: boxes_in(text, style, size), None
        )

    def _answered(
        self,
        messages: tuple[EncodedMessage, ...],
        instruction: str,
        read: Callable[[str], T],
        schema: type[BaseModel] | None,
    ) -> Answer[T]:
        """From the cache, else requested and cached; `read` raises `ValueError` for an invalid text."""
        key = self._key(messages, instruction, schema and schema.model_json_schema())
        found = self._cached(key, lambda document: _answer(document, read, cached=True))
        if found is not None:
            return found
        prompt = _with_instruction(messages, instruction)
        with self._counted_failures():
            document = self._requested(prompt, instruction, read, schema)
        self._keep(key, document)
        return _answer(document, read, cached=False)

    def _requested(
        self,
        prompt: tuple[EncodedMessage, ...],
        instruction: str,
        read: Callable[[str], object],
        schema: type[BaseModel] | None,
    ) -> dict[str, Any]:
        """The fields of an `Answer` whose text `read` accepts, after at most one correction."""
        started, messages, usage, requests = time.monotonic(), prompt, Usage(), 0
        fault = ""
        for _ in range(2):
            completion = self._backend.complete(messages, schema)
            usage, requests = usage + completion.usage, requests + completion.requests
            try:
                read(completion.text)
            except ValueError as error:
                fault = str(error) + (", cut off at vision.max_tokens" if completion.cut else "")
            else:
                return {
                    "text": completion.text,
                    "reasoning": completion.reasoning,
                    "usage": asdict(usage),
                    "cost": self.account.cost(usage),
                    "seconds": round(time.monotonic() - started, 3),
                    "requests": requests,
                    "model": self._config.model,
                }
            correction = f"Your answer does not fit: {fault}. {instruction}"
            messages = (
                *prompt,
                EncodedMessage("assistant", completion.text),
                EncodedMessage("user", correction),
            )
        raise Unanswered(f"{self._config.model} gave two invalid answers, the last: {fault}")

    @contextmanager
    def _counted_failures(self) -> Iterator[None]:
        """Count a failure when the block raises `Unanswered`."""
        try:
            yield
        except Unanswered:
            self.account.count(failures=1)
            raise

    def _encoded(self, messages: Sequence[Message]) -> tuple[EncodedMessage, ...]:
        """Messages with images as PNG, limited to `max_side` of config and profile."""
        with self._counted_failures():
            self._check_number(messages)
            side = self.max_side
            return tuple(
                EncodedMessage(
                    message.role,
                    message.text,
                    tuple(_encoded_picture(picture, side) for picture in message.pictures),
                )
                for message in messages
            )

    def _check_number(self, messages: Sequence[Message]) -> None:
        """Raises `Unanswered` for more images than the model accepts."""
        count = sum(len(message.pictures) for message in messages)
        limit = self.max_images
        if limit is not None and count > limit:
            raise Unanswered(
                f"{self._config.model} accepts at most {limit} images per question, not {count}"
            )

    def _key(self, messages: Sequence[EncodedMessage], *request: object) -> str:
        """Digest of all inputs of an answer: options, texts, pixels, and the instruction or schema."""
        turns = [
            [m.role, m.text, [[picture.label, digest_of(picture.png)] for picture in m.pictures]]
            for m in messages
        ]
        return digest_json([CODE_VERSION, deciding(self._config), turns, request])

    def _cached(self, key: str, read: Callable[[dict[str, Any]], T]) -> T | None:
        """The cached answer, None if it is absent, damaged or of an incompatible version."""
        data = None if self._cache is None else self._cache.get(key)
        if data is None:
            return None
        try:
            found = read(json.loads(data))
        except (ValueError, TypeError, LookupError):
            return None
        self.account.count(cached=1)
        return found

    def _keep(self, key: str, document: dict[str, Any]) -> None:
        """Count a new answer and cache it."""
        self.account.count(answers=1)
        if self._cache is not None:
            self._cache.put(key, json.dumps(document).encode())


class Conversation:
    """Several turns with one model; each request contains all earlier turns without their reasoning.

    A question without a usable answer is not part of later requests.
    """

    def __init__(self, model: VisionLanguageModel, system: str = "") -> None:
        """`system` is the system message; empty for none."""
        self._model = model
        self.messages: tuple[Message, ...] = (Message("system", system),) if system else ()

    def ask(
        self, text: str, schema: type[A], images: "Iterable[Image | Picture]" = ()
    ) -> Answer[A]:
        """The answer to the next question; see `VisionLanguageModel.ask`."""
        messages = (*self.messages, question(text, images))
        answer = self._model.ask(messages, schema)
        self.messages = (*messages, Message("assistant", answer.text))
        return answer


def _encoded_picture(picture: Picture, side: int) -> EncodedPicture:
    png = encoded(picture.image, side)
    # width and height from the IHDR chunk
    size = (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big"))
    return EncodedPicture(png, size, picture.label)


def _answer(document: dict[str, Any], read: Callable[[str], T], cached: bool) -> Answer[T]:
    """An `Answer` from the fields of `_requested`."""
    usage, value = Usage(**document["usage"]), read(document["text"])
    return Answer(**{**document, "usage": usage, "value": value, "cached": cached})


def _with_instruction(
    messages: Sequence[EncodedMessage], instruction: str
) -> tuple[EncodedMessage, ...]:
    """The messages with an instruction appended to the last one."""
    *before, last = messages
    return (*before, replace(last, text=f"{last.text}\n\n{instruction}"))


def _choice(options: Sequence[str], shares: Sequence[float], cached: bool) -> Choice:
    mass = sum(shares)
    if mass <= 0:
        raise Unanswered("all options have probability 0 as the first token")
    chances = {one: share / mass for one, share in zip(options, shares, strict=True)}
    return Choice(chances, min(mass, 1.0), cached)
