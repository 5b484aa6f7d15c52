"""Arguments and options shared by several commands."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML config.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override a config key; repeatable."),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Recipe for keys that the config does not set; listed by `dreambooth recipes`.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Work = Annotated[Path, typer.Option(help="Folder of local state.")]
