"""Arguments and options shared by several commands."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dreambooth_core.errors import ConfigError

if TYPE_CHECKING:
    from dreambooth_core.config import Subject

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML config.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override a config key; repeatable."),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Recipe (listed by `dreambooth recipes`) or YAML file for keys that the config does not set.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Work = Annotated[Path, typer.Option(help="Folder of local state.")]


def subject_of(options: Mapping[str, Any]) -> "Subject":
    """The subject that the options describe; raises `ConfigError`."""
    from pydantic import ValidationError

    from dreambooth_core.config import Subject
    from dreambooth_core.config.refusals import wrong_fields

    try:
        return Subject.model_validate(options)
    except ValidationError as error:
        raise ConfigError(f"wrong options: {wrong_fields(error)}") from error
