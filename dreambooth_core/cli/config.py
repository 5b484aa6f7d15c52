"""`dreambooth config`: what a config may hold, and what it comes to."""

import typer

from dreambooth_core.cli.options import AsJson, ConfigFile, Overrides, Recipe

app = typer.Typer(no_args_is_help=True, help="What a config may hold, and what it comes to.")


@app.command()
def schema() -> None:
    """JSON schema of a config, for editors."""
    import json

    from dreambooth_core.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))


@app.command()
def reference() -> None:
    """Every key with its type, default, range and help, as Markdown."""
    from dreambooth_core.config.reference import reference as page

    print(page(), end="")


@app.command()
def show(
    config: ConfigFile,
    overrides: Overrides = None,
    recipe: Recipe = None,
    as_json: AsJson = False,
) -> None:
    """The config with every default filled in."""
    from dreambooth_core.cli import run_output
    from dreambooth_core.config import load_config

    run_output.show_config(load_config(config, tuple(overrides or ()), recipe), as_json)
