"""Cases for each key of the config's schema: values of a wrong type and out of range.

The expected exit codes follow from the JSON schema and from docs/: numbers are finite, a text is not a
number, an integer is not a boolean, a section is a mapping.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.fuzz.case import BAD, OK, Case, document

Schema = Mapping[str, Any]
JUDGE = {"url": "http://127.0.0.1:9/v1", "model": "m"}
FREE_TEXT = {
    *(
        "provenance",
        "consent",
        "licence",
        "negative_prompt",
        "revision",
        "model",
        "initializer_token",
    ),
    *("endpoint", "uri", "work"),
}
"""Keys whose text may be empty."""
HUGE = "x" * 20_000


class Raw(str):
    """YAML source, written as it is."""


def cases() -> Iterator[Case]:
    """For every key of `dreambooth config schema`."""
    from dreambooth_core.config import Config

    schema = Config.model_json_schema()
    for path, rule in _leaves(schema, schema, ()):
        for what, value in _wrong(path[-1], rule):
            yield _case(path, what, value, BAD)
        if "default" in rule:
            yield _case(path, "its default", rule["default"], OK)
    for path, _ in _sections(schema, schema, ()):
        for what, value in {"null": None, "a list": [], "a text": "on", "a number": 3}.items():
            nullable = path == ("evaluation", "judge") and value is None
            yield _case(path, what, value, OK if nullable else BAD)
        yield _case((*path, "nonsense"), "an unknown key", 1, BAD)


def _case(path: tuple[str, ...], what: str, value: Any, code: int) -> Case:
    dotted = ".".join(path)

    def build(folder: Path) -> None:
        (folder / "config.yaml").write_text(written(path, value), encoding="utf-8")

    named = code == BAD and what != "a date"  # whose message has the line instead
    contains = (path[-1],) if named else ()
    return Case(
        f"fields/{dotted}: {what}", ("config", "show", "config.yaml"), code, build, contains
    )


def written(path: tuple[str, ...], value: Any) -> str:
    """A valid config with one more key, as YAML."""
    config = document()
    if path[:2] == ("evaluation", "judge") and len(path) > 2:
        config["evaluation"] = {"judge": dict(JUDGE)}
    section: dict[str, Any] = config
    for key in path[:-1]:
        section = section.setdefault(key, {})
    marker = "RAW-VALUE"
    section[path[-1]] = marker if isinstance(value, Raw) else value
    done = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    return done.replace(marker, str(value)) if isinstance(value, Raw) else done


def _leaves(
    schema: Schema, part: Schema, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Schema]]:
    for name, rule in part.get("properties", {}).items():
        section = _section(schema, rule)
        if section is None:
            yield (*path, name), rule
        else:
            yield from _leaves(schema, section, (*path, name))


def _sections(
    schema: Schema, part: Schema, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Schema]]:
    for name, rule in part.get("properties", {}).items():
        section = _section(schema, rule)
        if section is not None:
            yield (*path, name), section
            yield from _sections(schema, section, (*path, name))


def _section(schema: Schema, rule: Schema) -> Schema | None:
    """The mapping that a rule refers to, nullable or not; None for other rules."""
    for option in (rule, *rule.get("anyOf", ()), *rule.get("allOf", ())):
        if "$ref" in option:
            found: Schema = schema["$defs"][option["$ref"].rpartition("/")[2]]
            return found if "properties" in found else None
    return None


def _wrong(name: str, rule: Schema) -> Iterator[tuple[str, Any]]:
    options = rule.get("anyOf", [rule])
    nullable = any(option.get("type") == "null" for option in options)
    options = [option for option in options if option.get("type") != "null"]
    if not nullable:
        yield "null", None
    if len(options) != 1:
        return
    (option,) = options
    kind = "choice" if "enum" in option or "const" in option else option.get("type", "")
    yield from _OF_KIND.get(kind, _of_nothing)(name, option)


def _of_nothing(name: str, rule: Schema) -> Iterator[tuple[str, Any]]:
    return iter(())


def _of_scalar() -> Iterator[tuple[str, Any]]:
    yield "a list", [1]
    yield "a mapping", {"a": 1}
    yield "a date", Raw("2026-01-01")


def _of_number(name: str, rule: Schema) -> Iterator[tuple[str, Any]]:
    yield from _of_scalar()
    yield "a word", "many"
    yield "empty", ""
    yield "with a unit", "10 steps"
    yield "nan", Raw(".nan")
    yield "infinite", Raw(".inf")
    yield "minus infinite", Raw("-.inf")
    yield "nan as text", "nan"
    yield "inf as text", "inf"
    if "minimum" in rule:
        yield "below", rule["minimum"] - 1
    if "exclusiveMinimum" in rule:
        yield "at the lower end", rule["exclusiveMinimum"]
        yield "below", -1
    if "maximum" in rule:
        yield "above", rule["maximum"] + 1
    if "exclusiveMaximum" in rule:
        yield "at the upper end", rule["exclusiveMaximum"]
    if "multipleOf" in rule:
        yield "no multiple", rule["minimum"] + 1


def _of_float(name: str, rule: Schema) -> Iterator[tuple[str, Any]]:
    yield from _of_number(name, rule)
    yield "too large for a float", Raw("1.0e+999")


def _of_integer(name: str, rule: Schema) -> Iterator[tuple[str, Any]]:
    yield from _of_number(name, rule)
    yield "a fraction", 1.5
    yield "true", True


def _of_boolean(name: str, rule: Schema) -> Iterator[tuple[str, Any]]:
    yield from _of_scalar()
    yield "a word", "maybe"
    yield "empty", ""
    yield "two", 2
    yield "nan", Raw(".nan")


def _of_choice(name: str, rule: Schema) -> Iterator[tuple[str, Any]]:
    yield from _of_scalar()
    yield "a word", "nonsense"
    yield "empty", ""
    yield "huge", HUGE
    yield "a path", "../../etc/passwd"


def _of_string(name: str, rule: Schema) -> Iterator[tuple[str, Any]]:
    yield from _of_scalar()
    yield "a number", 42
    yield "YAML's no", Raw("no")
    if "pattern" in rule:
        yield "huge", HUGE
        yield "a path", "../../etc/passwd"
    if name not in FREE_TEXT and not name.endswith("revision"):
        yield "empty", ""


def _of_array(name: str, rule: Schema) -> Iterator[tuple[str, Any]]:
    yield "a text", "a photo of {subject}"
    yield "a number", 3
    yield "a mapping", {"a": 1}
    yield "null inside", [None]
    yield "a mapping inside", [{"a": 1}]
    yield "deep", [[["x"]]]
    if rule.get("minItems"):
        yield "empty", []


def _of_object(name: str, rule: Schema) -> Iterator[tuple[str, Any]]:
    yield "a list", [1]
    yield "a text", "on"
    inside = "identity" if name in ("limits", "margins") else "attn"
    yield "a word inside", {inside: "much"}
    yield "a list inside", {inside: [1]}
    yield "nan inside", Raw(f"{{{inside}: .nan}}")
    yield "inf inside", Raw(f"{{{inside}: .inf}}")


_OF_KIND = {
    "integer": _of_integer,
    "number": _of_float,
    "boolean": _of_boolean,
    "choice": _of_choice,
    "string": _of_string,
    "array": _of_array,
    "object": _of_object,
}
