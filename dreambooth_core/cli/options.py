"""Arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML config.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override one key; repeatable."),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Settings for what the config leaves out: `recipes` lists them."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]
Work = Annotated[Path, typer.Option(help="Folder of the local state.")]
