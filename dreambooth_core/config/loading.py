"""Loading of configs from recipes, YAML files and `--set`."""

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dreambooth_core.config.documents import DEPTH, parse_yaml, read_yaml
from dreambooth_core.config.recipes import overlaid, recipe_file
from dreambooth_core.config.refusals import wrong_fields
from dreambooth_core.config.run import Config
from dreambooth_core.errors import ConfigError

__all__ = ["config_for_folder", "load_config", "parsed_config", "read_yaml", "wrong_fields"]


def load_config(path: Path, overrides: tuple[str, ...] = (), recipe: str | None = None) -> Config:
    """Load a YAML config, with a recipe below it and `a.b=value` overrides above it.

    Relative paths start at the working directory. Raises `ConfigError` with one clause per wrong field.
    """
    document = read_yaml(path)
    if recipe is not None:
        document = overlaid(read_yaml(recipe_file(recipe), "recipe"), document)
    for override in overrides:
        _apply(document, override)
    return parsed_config(document, str(path))


def parsed_config(document: dict[str, Any], source: str) -> Config:
    """The config of a document; raises `ConfigError` that names the source and each wrong field."""
    try:
        return Config.model_validate(document)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{source}: {wrong_fields(error, Config)}") from error


def config_for_folder(work: Path) -> Config:
    """A default config with its local state in `work`, for commands that need only storage and tracking."""
    subject = {"images": ".", "class_noun": "nothing"}
    return Config.model_validate({"name": "nothing", "subject": subject, "paths": {"work": work}})


def _apply(document: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    named = dotted if len(dotted) <= 100 else f"{dotted[:100]}..."
    if not separator or not re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", dotted):
        # not repeated in the message, as it may be a secret
        raise ConfigError("--set takes a.b=value with a key of small letters: train.steps=400")
    *parents, last = dotted.split(".")
    if len(parents) >= DEPTH:
        raise ConfigError(f"--set {named}: no option has more than {DEPTH} parts")
    section: Any = document
    for key in parents:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {named}: {key} is a value, not a section")
    section[last] = parse_yaml(text, f"--set {named}")
