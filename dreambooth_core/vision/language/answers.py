"""JSON objects in a response with reasoning, code fences and prose, validated against a schema."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

A = TypeVar("A", bound=BaseModel)
T = TypeVar("T")

_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Usage:
    """Tokens of one or more requests: the server's counts, or an upper bound without them."""

    input: int = 0
    output: int = 0
    """Including reasoning."""
    cached_input: int = 0
    """Those of `input` that the server read from its prompt cache."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input + other.input,
            self.output + other.output,
            self.cached_input + other.cached_input,
        )


@dataclass(frozen=True)
class Answer(Generic[T]):
    """A validated answer with its tokens, cost and latency."""

    value: T
    text: str
    """The response without reasoning."""
    reasoning: str
    """Empty if the response has none."""
    usage: Usage
    """Tokens of the responses behind this answer; failed attempts are counted in `Account` only."""
    cost: float | None
    """Cost of `usage` in the prices' currency; None without a known price."""
    seconds: float
    """Latency from the first request to the validated answer."""
    requests: int
    """More than one after a retry or a correction."""
    model: str
    cached: bool = False
    """Read from the cache: usage, cost, seconds and requests are those of the original answer."""


@dataclass(frozen=True)
class Choice:
    """Probabilities of the given options."""

    probabilities: dict[str, float]
    """Option -> probability; they sum to 1."""
    mass: float
    """Total probability of all options as first token, before normalisation, in (0, 1]; a low mass makes
    `probabilities` unreliable."""
    cached: bool = False


def parsed(text: str, schema: type[A]) -> A:
    """The last JSON object in `text` that fits the schema; reasoning and earlier drafts precede it.

    Raises `ValueError` with the validation errors of the last object; used as the correction's text.
    """
    faults = []
    for found in reversed(list(_objects(without_reasoning(text)))):
        try:
            return schema.model_validate(found)
        except ValidationError as error:
            faults.append(_faults(error))
    raise ValueError(faults[0] if faults else "it holds no JSON object")


def schema_instruction(schema: type[BaseModel]) -> str:
    """The instruction that requests an answer of this schema."""
    shape = json.dumps(schema.model_json_schema(), separators=(",", ":"))
    return f"Answer with one JSON object and nothing else. It must fit this JSON schema: {shape}"


def without_reasoning(text: str) -> str:
    """The text after `</think>`; some servers omit the opening `<think>`."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def reasoning_in(text: str) -> str:
    """The reasoning in a response, empty if there is none."""
    before, closing, after = text.rpartition("</think>")
    return (before if closing else after.partition("<think>")[2]).replace("<think>", "").strip()


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """All outermost JSON objects in the text."""
    place = text.find("{")
    while place >= 0:
        try:
            found, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            yield found
        place = text.find("{", end)


def _faults(error: ValidationError) -> str:
    places = (
        (".".join(map(str, item["loc"])) or "the object", item["msg"]) for item in error.errors()
    )
    return "; ".join(f"at {place}: {message}" for place, message in places)
