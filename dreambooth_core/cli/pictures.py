"""Commands that draw: `sample`."""

from pathlib import Path
from typing import Annotated

import typer

from dreambooth_core.cli.arguments import Work

app = typer.Typer()


@app.command()
def sample(
    model: Annotated[str, typer.Argument(help="NAME (its candidate), NAME@alias or NAME/version.")],
    prompt: Annotated[
        list[str], typer.Option(help="Template; {subject} is what was learned. Repeatable.")
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Images per prompt.")] = 4,
    out: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("samples"),
    work: Work = Path(".dreambooth"),
    config: Annotated[Path | None, typer.Option(help="Config that says where MLflow is.")] = None,
) -> None:
    """Draw images from a registered model; prints their paths."""
    from dreambooth_core import draw
    from dreambooth_core.config import load_config

    settings = load_config(config) if config else None
    place = settings.paths.work if settings else work
    for path in draw.from_registry(settings, place, model, draw.Wish(tuple(prompt), seeds, out)):
        print(path)
