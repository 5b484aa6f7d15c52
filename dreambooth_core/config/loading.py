"""Configs from YAML files and `--set`."""

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dreambooth_core.config.documents import DEPTH, parse_yaml, read_yaml
from dreambooth_core.config.recipes import overlaid, recipe_file
from dreambooth_core.config.refusals import wrong_fields
from dreambooth_core.config.run import Config
from dreambooth_core.errors import ConfigError

__all__ = ["load_config", "placed", "read_yaml", "wrong_fields"]


def load_config(path: Path, overrides: tuple[str, ...] = (), recipe: str | None = None) -> Config:
    """Read a YAML config and apply `a.b=value` overrides; relative paths count from the working directory.

    What neither of them sets comes from the recipe. Raises `ConfigError` with one clause per wrong field.
    """
    document = read_yaml(path)
    if recipe is not None:
        document = overlaid(read_yaml(recipe_file(recipe), "recipe"), document)
    for override in overrides:
        _apply(document, override)
    try:
        return Config.model_validate(document)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {wrong_fields(error, Config)}") from error


def placed(work: Path) -> Config:
    """A config that says nothing but where local state is; storage and tracking are the default."""
    subject = {"images": ".", "class_noun": "nothing"}
    return Config.model_validate({"name": "nothing", "subject": subject, "paths": {"work": work}})


def _apply(document: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    named = dotted if len(dotted) <= 100 else f"{dotted[:100]}..."
    if not separator or not re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", dotted):
        # not repeated: it may be a secret without its key
        raise ConfigError("--set takes a.b=value with a key of small letters: train.steps=400")
    *parents, last = dotted.split(".")
    if len(parents) >= DEPTH:
        raise ConfigError(f"--set {named}: no option has more than {DEPTH} parts")
    place: Any = document
    for key in parents:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {named}: {key} is a value, not a section")
    place[last] = parse_yaml(text, f"--set {named}")
