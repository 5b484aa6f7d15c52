"""`dreambooth bench`: published evaluation protocols on any config."""

from pathlib import Path
from typing import Annotated

import typer

from dreambooth_core.cli.options import AsJson, Overrides
from dreambooth_core.cli.signals import interruptible

app = typer.Typer(help="Published evaluation protocols on any config.", no_args_is_help=True)


@app.command()
def dreambench(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with one subfolder of photos per subject.")
    ],
    config: Annotated[
        Path, typer.Option(help="Config; its subject is replaced by each one in DIR.")
    ] = Path("examples/small_world/config.yaml"),
    overrides: Overrides = None,
    subjects: Annotated[
        str | None, typer.Option(help="The first N, or names separated by commas; default: all.")
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(min=1, max=25, help="Only the first N of the 25 prompts, for a trial."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate by the DreamBooth paper's 30-subject protocol, beside the paper's numbers.

    DIR has the layout of github.com/google/dreambooth. The same command resumes a stopped bench.
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
