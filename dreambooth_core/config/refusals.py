"""Messages for pydantic's errors: one clause per wrong field, without values that may be secret."""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dreambooth_core.config.credentials import may_be_secret, without_password

CLAUSES = 5
"""Maximum wrong fields named in a message; the rest is counted."""
SHOWN = 24
"""Maximum characters of a repeated value; API keys and tokens are longer."""

_MESSAGES: Mapping[str, str] = {
    "missing": "is missing: set it",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text (in quotes)",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a section: a mapping of its options",
    "literal_error": "must be {expected}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "string_too_short": "must have a length of at least {min_length}",
    "string_too_long": "must have a length of at most {max_length}",
    "too_short": "must be a list of at least {min_length}",
    "too_long": "must be a list of at most {max_length}",
}
"""Type of a pydantic error -> message, formatted with the error's context."""
_STRUCTURES = frozenset({"model_type", "dict_type"})
_BRANCHES = ("int", "float", "str", "bool", "constrained-", "tuple[", "lax-or-strict", "function-")
"""Pydantic's names of union members, which it appends to a field's location."""


def wrong_fields(error: ValidationError, schema: type[BaseModel] | None = None) -> str:
    """One clause per wrong field: `train.steps: must be at least 1 (got 0)`.

    `schema`: the model that raised the error, whose keys are proposed for unknown ones.
    """
    items = error.errors(include_url=False)
    errors: dict[str, list[ErrorDetails]] = {}
    parents = {item["loc"][:end] for item in items for end in range(len(item["loc"]))}
    for item in items:
        # errors that follow from others: a list too short without its wrong entries, a derived default
        implied = item["type"] == "too_short" and item["loc"] in parents
        if not implied and item["type"] != "default_factory_not_called":
            errors.setdefault(_dotted(item["loc"]), []).append(item)
    clauses = [f"{key}: {_clause(found, schema)}" for key, found in list(errors.items())[:CLAUSES]]
    more = [f"and {len(errors) - CLAUSES:,} more"] if len(errors) > CLAUSES else []
    return without_password("; ".join([*clauses, *more]))


def proposals(given: str, known: Sequence[str]) -> list[str]:
    """Up to three dotted keys similar to `given`: the nearest of the same section, else of other sections."""
    section, _, last = given.rpartition(".")
    last = last[:64]
    siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    if near := get_close_matches(last, siblings, 1, 0.75):
        return [siblings[near[0]]]
    names = {key.rpartition(".")[2] for key in known}
    near = [last] if last in names else get_close_matches(last, names, 1, 0.75)
    return [key for key in known if key.rpartition(".")[2] in near][:3]


@cache
def known_keys(schema: type[BaseModel]) -> tuple[str, ...]:
    """Dotted keys of a model and its nested models."""
    return tuple(_keys(schema))


def _keys(schema: type[BaseModel]) -> Iterator[str]:
    for name, field in schema.model_fields.items():
        yield name
        for model in _models_in(field.annotation):
            yield from (f"{name}.{key}" for key in _keys(model))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for one in get_args(annotation):
        yield from _models_in(one)


def _dotted(path: tuple[int | str, ...]) -> str:
    """Dotted key, without union members and pydantic's marker of a mapping's key."""
    parts = [str(part)[:100] for part in path if part != "[key]"]
    while len(parts) > 1 and parts[-1].startswith(_BRANCHES[4:]):
        parts.pop()
    if len(parts) > 1 and parts[-1] in _BRANCHES[:4]:
        parts.pop()
    return ".".join(parts) or "config"


def _clause(found: Sequence[ErrorDetails], schema: type[BaseModel] | None) -> str:
    """Message for the errors of one field, one error per union member."""
    first = found[0]
    if first["type"] == "extra_forbidden":
        return _unknown(first["loc"], schema)
    if first["type"] not in _MESSAGES:
        return first["msg"].removeprefix("Value error, ")
    words = [_MESSAGES.get(item["type"], "").format(**item.get("ctx", {})) for item in found]
    wanted = dict.fromkeys(word.removeprefix("must be ") for word in words[1:] if word)
    return " or ".join(dict.fromkeys([words[0], *wanted])) + _got(first)


def _unknown(path: tuple[int | str, ...], schema: type[BaseModel] | None) -> str:
    given = ".".join(part for part in path if isinstance(part, str))
    found = proposals(given, known_keys(schema)) if schema else []
    if found:
        return f"is no option: did you mean {' or '.join(found)}?"
    return "is no option: remove it"


def _got(item: ErrorDetails) -> str:
    """The value in brackets, if it is short and its field cannot be a secret."""
    value = item["input"]
    if item["type"] == "missing" or any(may_be_secret(str(part)) for part in item["loc"]):
        return ""
    if isinstance(value, str) and (len(value) > SHOWN or item["type"] in _STRUCTURES):
        return f" (got text of {len(value):,} characters)"
    if value is None or isinstance(value, str | int | float):
        return f" (got {reprlib.repr(value)})"
    return f" (got a {'mapping' if isinstance(value, dict) else type(value).__name__})"
