"""Every config key with its type, default, range and help, as Markdown: docs/configuration.md."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from dreambooth_core.config.run import Config

HEAD = """\
# Configuration

Every key of a config, generated from its schema by `dreambooth config reference`. A key is set in the YAML
file or by `--set section.key=value`; unknown keys and values out of range are refused before anything starts.
"""
_BOUNDS = (
    ("minimum", ">="),
    ("exclusiveMinimum", ">"),
    ("maximum", "<="),
    ("exclusiveMaximum", "<"),
)

Schema = Mapping[str, Any]


def reference() -> str:
    """The page: a heading and a table of keys per section."""
    schema = Config.model_json_schema()
    sections = "\n".join(_section(schema, schema, ""))
    return f"{HEAD}\n{sections}"


def _section(root: Schema, section: Schema, prefix: str) -> Iterator[str]:
    """Lines of a section's table, then those of nested sections; `prefix` is `train.` or empty."""
    inner: list[tuple[str, Schema]] = []
    rows = []
    for name, field in section["properties"].items():
        target = _section_in(root, field)
        if target is not None:
            inner.append((f"{prefix}{name}", target))
        if target is None or field.get("type") == "array" or "anyOf" in field:
            rows.append(_row(f"{prefix}{name}", field, name in section.get("required", ())))
    if prefix:
        yield f"## {prefix.rstrip('.')}\n\n{_one_line(section.get('description', ''))}\n"
    else:
        yield "## Top level\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    yield from rows
    yield ""
    for name, target in inner:
        if prefix or name != "more_subjects":
            yield from _section(root, target, f"{name}.")


def _row(name: str, field: Schema, required: bool) -> str:
    default = "**required**" if required else f"`{_value(field.get('default'))}`"
    if "default" not in field and not required:
        default = "derived"
    return f"| `{name}` | {_type(field)} | {default} | {_one_line(field.get('description', ''))} |"


def _type(field: Schema) -> str:
    """`integer >= 1`, `mse, huber`, `list of string`, ..."""
    if "enum" in field:
        return ", ".join(f"`{_value(value)}`" for value in field["enum"])
    if "const" in field:
        return f"`{_value(field['const'])}`"
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "$ref" in field:
        return "section"
    if field["type"] == "array":
        return f"list of {_type(field['items'])}" if "items" in field else "list"
    if field["type"] == "object":
        values = field.get("additionalProperties")
        return f"mapping to {_type(values)}" if isinstance(values, Mapping) else "mapping"
    bounds = [f"{sign} {field[key]}" for key, sign in _BOUNDS if key in field]
    return " ".join([str(field["type"]), ", ".join(bounds)]).strip()


def _section_in(root: Schema, field: Schema) -> Schema | None:
    """The schema of a field's section, also in a list or a union; None for other fields."""
    options = [field, *field.get("anyOf", ()), field.get("items", {})]
    for option in options:
        if "$ref" in option:
            found: Schema = root["$defs"][option["$ref"].rpartition("/")[2]]
            return found if "properties" in found else None
    return None


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
