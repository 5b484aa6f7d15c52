"""Commands about trained models: `export`, `compare`."""

from pathlib import Path
from typing import Annotated

import typer

from dreambooth_core.cli.arguments import Overrides, Work

app = typer.Typer()


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(
            help="NAME, NAME@alias or NAME/version; or the config of a finished training."
        ),
    ],
    form: Annotated[str, typer.Option("--format", help="One of the formats above.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files; exports/FORMAT when left out.")
    ] = None,
    work: Work = Path(".dreambooth"),
    overrides: Overrides = None,
) -> None:
    """Hand a trained model to other programs; prints the paths.

    Formats: diffusers, single_file (A1111, ComfyUI), lora_diffusers, lora_kohya, lora_comfy, embedding.
    """
    from dreambooth_core import draw

    for path in draw.exported(
        model, form, out or Path("exports") / form, work, tuple(overrides or ())
    ):
        print(path)


@app.command()
def compare(
    left: Annotated[Path, typer.Argument(help="summary.json of a run, or its folder.")],
    right: Annotated[Path, typer.Argument(help="summary.json of another run, or its folder.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("comparison.html"),
) -> None:
    """Put the reports of two runs side by side on one page."""
    from dreambooth_core.comparison import compare_runs

    print(compare_runs(left, right, out))
