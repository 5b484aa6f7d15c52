"""Reading of user-written YAML, JSON, CSV and text under limits.

Reads regular UTF-8 files of limited size, and documents of limited depth and number of values without
duplicate keys; anything else raises a `ConfigError` of one sentence with file and line, within about a
second and in little memory. Messages do not repeat a file's content, which may be secret.
"""

import csv
import io
import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

import yaml

from dreambooth_core.errors import ConfigError

YAML_BYTES = 256 * 1024
TABLE_BYTES = 4 * 1024 * 1024
DEPTH = 32
"""Maximum nesting of mappings and lists."""
VALUES = 10_000
"""Maximum keys, values, mappings and lists of a YAML document, aliases expanded."""
DIGITS = 30
"""Maximum digits of an integer."""

_PLAIN = {
    f"tag:yaml.org,2002:{tag}" for tag in ("str", "int", "float", "bool", "null", "map", "seq")
}
_MERGE = "tag:yaml.org,2002:merge"


def read_text(path: Path, what: str, limit: int = YAML_BYTES) -> str:
    """The text of a regular UTF-8 file of at most `limit` bytes, without byte order mark.

    `what`: the file's role, for messages. Raises `ConfigError`.
    """
    data = _bytes(path, what, limit)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the {what} {path} is not readable text: byte {error.start} is not UTF-8, save it as UTF-8"
        ) from None


def read_yaml(path: Path, what: str = "config") -> dict[str, Any]:
    """The mapping in a YAML file, empty for an empty file.

    `what`: the file's role, for messages. Raises `ConfigError`.
    """
    document = parse_yaml(read_text(path, what), str(path))
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, not {_kind(document)}")
    return document


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML document of text, numbers, true/false, null, lists and mappings.

    `where`: the text's origin, for messages. Raises `ConfigError`.
    """
    if len(text) > YAML_BYTES:
        raise ConfigError(f"{where} has {len(text):,} characters: at most {YAML_BYTES:,} are read")
    try:
        loader = _Loader(text, where)
        return _combine_surrogates(loader.get_single_data())
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        _refuse(where, line, "a control character cannot be read: remove it")
    except yaml.MarkedYAMLError as error:
        _refuse(where, _line(error.problem_mark or error.context_mark), _problem(error))
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is not readable YAML: it has a lone surrogate") from None
    except (OverflowError, ValueError):  # PyYAML's scanner does not check the range of \U escapes
        raise ConfigError(
            f"{where} is not readable YAML: an escape (\\U) is no character"
        ) from None


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON document; raises `ConfigError`, also for NaN, Infinity and duplicate keys."""

    def refuse(what: str) -> NoReturn:
        raise ConfigError(f"{where} is not readable JSON: {what}")

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            refuse("a key is duplicated in one mapping, keep one")
        return found

    def whole(digits: str) -> int:
        return int(digits) if len(digits) <= DIGITS else refuse(_TOO_LONG)

    try:
        document = json.loads(
            text,
            object_pairs_hook=mapping,
            parse_int=whole,
            parse_constant=lambda word: refuse(f"{word} is no finite number"),
        )
        if _depth(document) > DEPTH:
            refuse(_TOO_DEEP)
        return _combine_surrogates(document)
    except json.JSONDecodeError as error:
        refuse(f"line {error.lineno}: {error.msg}")
    except RecursionError:
        refuse(_TOO_DEEP)
    except UnicodeDecodeError:
        refuse("it has a lone surrogate")


def read_csv(path: Path, what: str) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a CSV file.

    `what`: the file's role, for messages. Raises `ConfigError`.
    """
    header, *rows = parse_csv(read_text(path, what, TABLE_BYTES), str(path)) or [[]]
    return header, rows


def parse_csv(text: str, where: str) -> list[list[str]]:
    """The rows of a CSV text, empty lists for empty lines; raises `ConfigError`."""
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ConfigError(f"{where} is not readable CSV: line {line}: a NUL character, remove it")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return list(reader)
    except csv.Error as error:
        raise ConfigError(f"{where} is not readable CSV: line {reader.line_num}: {error}") from None


_TOO_DEEP = f"more than {DEPTH} mappings or lists are nested: make it flatter"
_TOO_LONG = f"a whole number has more than {DIGITS} digits: write a smaller one"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits: values, depth, duplicate keys and anchors, plain tags only."""

    def __init__(self, text: str, where: str) -> None:
        self._where = where
        self._values = self._depth = 0
        self._sizes: dict[str, int] = {}
        super().__init__(text)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: yaml.NodeEvent = self.peek_event()  # type: ignore[no-untyped-call]
        line = _line(event.start_mark)
        anchor: Any = event.anchor
        before = self._values
        self._values += 1
        self._depth += 1
        if isinstance(event, yaml.AliasEvent):
            if anchor not in self._sizes:
                _refuse(self._where, line, "an alias (*) has no complete anchor (&) above it")
            self._values += self._sizes[anchor]
        elif anchor in self.anchors:
            _refuse(self._where, line, "an anchor (&) is defined twice: rename one")
        if self._values > VALUES:
            _refuse(
                self._where, line, f"more than {VALUES:,} values, aliases counted out: shorten it"
            )
        if self._depth > DEPTH:
            _refuse(self._where, line, _TOO_DEEP)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            self._sizes[anchor] = self._values - before
        self._check(node, line)
        return node

    def _check(self, node: yaml.Node | None, line: int) -> None:
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
        if node is None or node.tag == _MERGE:
            return
        if node.tag not in _PLAIN:
            _refuse(
                self._where,
                line,
                "only text, numbers, true, false, null, lists and mappings are read: remove the tag, "
                "and put a date into quotes",
            )
        if node.tag.endswith(":int") and len(node.value) > DIGITS:
            _refuse(self._where, line, _TOO_LONG)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: set[str] = set()
        for key, _ in node.value:
            line = _line(key.start_mark)
            if key.tag == _MERGE:
                continue
            if not key.tag.endswith(":str") or not isinstance(key, yaml.ScalarNode):
                _refuse(self._where, line, "a key must be text: put it into quotes")
            if key.value in seen:
                name = key.value if len(key.value) <= 60 else "of over 60 characters"
                _refuse(self._where, line, f"the key {name} is duplicated: keep one")
            seen.add(key.value)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, IndexError, OverflowError):
            line = _line(node.start_mark)
            _refuse(
                self._where,
                line,
                "a value does not match its tag or form: put it into quotes",
            )


def _bytes(path: Path, what: str, limit: int) -> bytes:
    """At most `limit` bytes of a regular file; reading other kinds may block or never end."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"the {what} {path} is no regular file: name one")
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        with os.fdopen(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"the {what} {path} is no regular file: name one")
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise ConfigError(f"no {what} at {path}: name an existing file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name holds a NUL character"
        raise ConfigError(f"the {what} {path} cannot be read: {reason}") from None
    if len(data) > limit:
        raise ConfigError(f"the {what} {path} has more than {limit:,} bytes, which is the limit")
    return data


def _problem(error: yaml.MarkedYAMLError) -> str:
    """PyYAML's message without the file's content, which it quotes as the name of a tag."""
    problem = " ".join(str(error.problem or error.context or "").split())
    return problem.partition("'")[0].strip() if "tag" in problem else problem


def _line(mark: Any) -> int:
    """Line of a PyYAML mark, from 1."""
    return mark.line + 1 if mark else 1


def _refuse(where: str, line: int, what: str) -> NoReturn:
    raise ConfigError(f"{where} is not readable YAML: line {line}: {what}")


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value), "a number")


def _depth(value: Any) -> int:
    """Nesting of mappings and lists."""
    deepest, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        deepest += 1
        level = [
            inner for one in level for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return deepest


def _combine_surrogates(value: Any) -> Any:
    r"""Combine surrogate pairs, which JSON escapes as `\ud83d\udc36` and PyYAML keeps as two characters.

    Raises `UnicodeDecodeError` for a lone surrogate.
    """
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16")
    if isinstance(value, dict):
        return {_combine_surrogates(key): _combine_surrogates(one) for key, one in value.items()}
    return [_combine_surrogates(one) for one in value] if isinstance(value, list) else value
