"""Configs from YAML files and `--set`."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dreambooth_core.config.run import Config
from dreambooth_core.errors import ConfigError


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a YAML config and apply `a.b=value` overrides; relative paths count from the working directory.

    Raises `ConfigError` with one line per wrong field.
    """
    document = read_yaml(path)
    for override in overrides:
        _apply(document, override)
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {wrong_fields(error)}") from error


def placed(work: Path) -> Config:
    """A config that says nothing but where local state is; storage and tracking are the default."""
    subject = {"images": ".", "class_noun": "nothing"}
    return Config.model_validate({"name": "nothing", "subject": subject, "paths": {"work": work}})


def read_yaml(path: Path, what: str = "config") -> dict[str, Any]:
    """The mapping in a YAML file; raises `ConfigError`, which calls it `what`."""
    try:
        document = _joined(yaml.safe_load(path.read_text(encoding="utf-8"))) or {}
    except FileNotFoundError:
        raise ConfigError(f"no {what} at {path}: name an existing YAML file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not readable YAML: {_one_line(error)}") from error
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path} must hold a mapping of sections, not a {type(document).__name__}"
        )
    return document


def _joined(value: Any) -> Any:
    r"""With halves of characters put together, which JSON writes as `\ud83d\udc36` and YAML leaves apart.

    Raises `UnicodeDecodeError` for a half that is alone.
    """
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16")
    if isinstance(value, dict):
        return {_joined(key): _joined(one) for key, one in value.items()}
    return [_joined(one) for one in value] if isinstance(value, list) else value


def wrong_fields(error: ValidationError) -> str:
    """One clause per wrong field: `train.steps: Input should be ... (got 0)`."""
    clauses = []
    # what follows from a field that is wrong is not wrong itself
    told = [item for item in error.errors() if item["type"] != "default_factory_not_called"]
    for item in told:
        where = ".".join(str(part) for part in item["loc"]) or "config"
        got = "" if item["type"] in ("missing", "value_error") else f" (got {item['input']!r})"
        clauses.append(f"{where}: {item['msg'].removeprefix('Value error, ')}{got}")
    return "; ".join(clauses)


def _apply(document: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", dotted):
        raise ConfigError(f"--set takes a.b=value, not {override!r}")
    *parents, last = dotted.split(".")
    place: Any = document
    for key in parents:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {dotted}: {key} is a value, not a section")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {dotted}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
