"""A new config for a folder of photos, with a comment per key."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from dreambooth_core.config.documents import read_yaml
from dreambooth_core.config.loading import parsed_config
from dreambooth_core.config.recipes import overlaid, recipe_file
from dreambooth_core.config.run import Config

WIDTH = 100
BASES = (
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-xl-base-1.0",
    "examples/small_world/base",
)
"""Bases to suggest: the smallest real one, a larger one, and the one of this repository."""


def starting_config(recipe: str, own: Mapping[str, Any], command: str) -> str:
    """YAML of a recipe's keys below those of `own`, each with the first sentence of its help.

    Raises `ConfigError` for values that a config refuses.
    """
    document = overlaid(read_yaml(recipe_file(recipe), "recipe"), dict(own))
    parsed_config(document, command)
    head = f"# Written by `{command}`, recipe {recipe}. All keys: docs/configuration.md"
    return "\n".join([head, "version: 1", *_lines(document, Config, 0)]) + "\n"


def _lines(document: Mapping[str, Any], section: type[BaseModel], depth: int) -> Iterator[str]:
    for key, value in document.items():
        field, indent = section.model_fields[key], "  " * depth
        kind = field.annotation
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
            yield f"{indent}{key}:"
            yield from _lines(value, kind, depth + 1)
            continue
        help_text = " ".join((field.description or "").split()).partition(". ")[0].rstrip(".")
        written = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
        line = f"{indent}{key}: {written.removesuffix('...').strip()}"
        yield f"{line} # {textwrap.shorten(help_text, WIDTH)}" if help_text else line
