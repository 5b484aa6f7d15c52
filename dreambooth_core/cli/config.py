"""`dreambooth config`: schema, reference and resolved values of configs."""

import typer

from dreambooth_core.cli.options import AsJson, ConfigFile, Overrides, Recipe

app = typer.Typer(no_args_is_help=True, help="Schema, reference and resolved values of configs.")


@app.command()
def schema() -> None:
    """Print the JSON schema of configs, for editors."""
    import json

    from dreambooth_core.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))


@app.command()
def reference() -> None:
    """Print every key with type, default, range and help, as Markdown."""
    from dreambooth_core.config.reference import reference as page

    print(page(), end="")


@app.command()
def show(
    config: ConfigFile,
    overrides: Overrides = None,
    recipe: Recipe = None,
    as_json: AsJson = False,
) -> None:
    """Print a config with all defaults filled in."""
    from dreambooth_core.cli import run_output
    from dreambooth_core.config import load_config

    run_output.show_config(load_config(config, tuple(overrides or ()), recipe), as_json)
