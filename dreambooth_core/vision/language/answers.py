"""The JSON in what a model wrote: found among thoughts, fences and prose, and held against its schema."""

import json
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

A = TypeVar("A", bound=BaseModel)

_DECODER = json.JSONDecoder()


def parsed(text: str, schema: type[A]) -> A:
    """The last object in `text` that fits the schema: models think first, and repeat themselves.

    Raises `ValueError` with one sentence for the model, of what is wrong with its last object.
    """
    faults = []
    for found in reversed(list(_objects(_without_thoughts(text)))):
        try:
            return schema.model_validate(found)
        except ValidationError as error:
            faults.append(_faults(error))
    raise ValueError(faults[0] if faults else "it holds no JSON object")


def asked_for(schema: type[BaseModel]) -> str:
    """The sentence that asks for an answer of this schema."""
    shape = json.dumps(schema.model_json_schema(), separators=(",", ":"))
    return f"Answer with one JSON object and nothing else. It must fit this JSON schema: {shape}"


def _without_thoughts(text: str) -> str:
    """What stands behind the thoughts; some servers leave out the mark that opens them."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """All objects in the text that stand inside no other."""
    place = text.find("{")
    while place >= 0:
        try:
            found, end = _DECODER.raw_decode(text, place)
        except ValueError:
            end = place + 1
        else:
            yield found
        place = text.find("{", end)


def _faults(error: ValidationError) -> str:
    places = (
        (".".join(map(str, item["loc"])) or "the object", item["msg"]) for item in error.errors()
    )
    return "; ".join(f"at {place}: {message}" for place, message in places)
