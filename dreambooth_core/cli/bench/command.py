"""Published protocols on one's own recipe: `bench dreambench`."""

from pathlib import Path
from typing import Annotated

import typer

from dreambooth_core.cli.options import AsJson, Overrides
from dreambooth_core.cli.signals import interruptible

app = typer.Typer(help="Published protocols on your own recipe.", no_args_is_help=True)


@app.command()
def dreambench(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A subfolder of photos per subject.")
    ],
    config: Annotated[
        Path, typer.Option(help="Config with the recipe; its subject is replaced by each of DIR's.")
    ] = Path("examples/small_world/config.yaml"),
    overrides: Overrides = None,
    subjects: Annotated[
        str | None, typer.Option(help="The first N, or names between commas; all when left out.")
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(min=1, max=25, help="Only the first N of the 25, for a trial.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The DreamBooth paper's 30-subject protocol, its numbers beside yours.

    DIR is laid out as in github.com/google/dreambooth. A bench that was stopped goes on with the same
    command.
    """
    from dreambooth_core.cli import run_output
    from dreambooth_core.cli.bench import dreambench as bench
    from dreambooth_core.config import load_config
    from dreambooth_core.training import preflight

    recipe = load_config(config, tuple(overrides or ()))
    preflight.check(recipe)
    wanted = bench.chosen(bench.subjects_in(folder), subjects)
    with interruptible():
        found = bench.run(recipe, wanted, prompts)
    run_output.show_bench(found, bench.results_path(recipe), as_json)
