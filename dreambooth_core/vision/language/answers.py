"""The JSON in what a model wrote, among reasoning, fences and prose, validated against a schema."""

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
    """Tokens of one or more requests: as the server counted them, or an upper bound where it did not."""

    input: int = 0
    output: int = 0
    """Reasoning included."""
    cached_input: int = 0
    """Of `input`: those that the server had in its cache."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input + other.input,
            self.output + other.output,
            self.cached_input + other.cached_input,
        )


@dataclass(frozen=True)
class Answer(Generic[T]):
    """A validated answer, and what it took."""

    value: T
    text: str
    """What the model wrote, without its reasoning."""
    reasoning: str
    """Empty where the model gave none."""
    usage: Usage
    """Of the responses that led to it; what failed attempts cost is in the account alone."""
    cost: float | None
    """Of that usage, in the prices' currency; None where no price is known."""
    seconds: float
    """Latency, from the question to the validated answer."""
    requests: int
    """Two or more after a retry or a corrective re-ask."""
    model: str
    cached: bool = False
    """Found in the cache: usage, cost, seconds and requests are those of the first time."""


@dataclass(frozen=True)
class Choice:
    """Probabilities of given options."""

    probabilities: dict[str, float]
    """Option -> probability; they sum to 1."""
    mass: float
    """Probability that the model begins its answer with any of the options, in (0, 1]; with little mass the
    probabilities say little."""
    cached: bool = False


def parsed(text: str, schema: type[A]) -> A:
    """The last object in `text` that fits the schema: models reason first, and repeat themselves.

    Raises `ValueError` with one sentence for the model that names what is wrong with its last object.
    """
    faults = []
    for found in reversed(list(_objects(without_reasoning(text)))):
        try:
            return schema.model_validate(found)
        except ValidationError as error:
            faults.append(_faults(error))
    raise ValueError(faults[0] if faults else "it holds no JSON object")


def asked_for(schema: type[BaseModel]) -> str:
    """The sentence that asks for an answer of this schema."""
    shape = json.dumps(schema.model_json_schema(), separators=(",", ":"))
    return f"Answer with one JSON object and nothing else. It must fit this JSON schema: {shape}"


def without_reasoning(text: str) -> str:
    """What follows the reasoning; some servers leave out the mark that opens it."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def reasoning_in(text: str) -> str:
    """The reasoning in a model's text, empty without any."""
    before, closing, after = text.rpartition("</think>")
    return (before if closing else after.partition("<think>")[2]).replace("<think>", "").strip()


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """All objects in the text that are inside no other."""
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
