"""Commands that learn: `run`, `train`, `validate`, `families`.

`run` imports the flow, inside the command, because the flow is what it runs.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_core.cli.arguments import AsJson, ConfigFile, Overrides
from dreambooth_core.cli.stopping import interruptible
from dreambooth_core.errors import ConfigError, DatasetRefused

if TYPE_CHECKING:
    from dreambooth_core.config import Config
    from dreambooth_core.summary import Summary

app = typer.Typer()


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print the plan.")] = False,
) -> None:
    """Learn one subject: check, train, measure, register, sample, report.

    Finished stages are reused; a run that was stopped goes on with the same command.
    """
    from dreambooth_core import bases, families
    from dreambooth_core.cli import screens
    from dreambooth_core.config import load_config

    settings = load_config(config, tuple(overrides or ()))
    bases.check_base(settings.model)
    families.check(families.load_family(settings.model.family), settings)
    if dry_run:
        screens.show_plan(settings, as_json)
        return
    started = time.time()
    with interruptible():
        try:
            summary = _perform(settings)
        except (Exception, KeyboardInterrupt) as error:
            if as_json:
                print(_left_behind(settings, started, error).model_dump_json(indent=2))
            raise
    if as_json:
        print(summary.model_dump_json(indent=2))
    else:
        screens.show_summary(summary)


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved config and the memory plan.")
    ] = False,
) -> None:
    """Photos, class images and training; no evaluation, no registration.

    Goes on from its last checkpoint; what was trained before with the same inputs is found again.
    """
    from dreambooth_core import bases, families, training_alone
    from dreambooth_core.cli import screens
    from dreambooth_core.config import load_config

    settings = load_config(config, tuple(overrides or ()))
    bases.check_base(settings.model)
    families.check(families.load_family(settings.model.family), settings)
    if dry_run:
        screens.show_training_plan(training_alone.plan(settings), as_json)
        return
    with interruptible():
        screens.show_trained(training_alone.train_alone(settings), as_json)


@app.command("families")
def show_families(as_json: AsJson = False) -> None:
    """The model families, what each can be trained by, and how that is tested."""
    from dreambooth_core.cli import screens

    screens.show_families(as_json)


@app.command()
def validate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of photos.")],
    resolution: Annotated[
        int, typer.Option(min=32, max=2048, help="Side of the training images, in pixels.")
    ] = 512,
    as_json: AsJson = False,
) -> None:
    """Check photos without a config; nothing is changed or stored."""
    from dreambooth_core import dataset
    from dreambooth_core.cli import screens
    from dreambooth_core.config import Dataset

    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: name one with the photos of your subject")
    found = dataset.validate(folder, Dataset(), resolution)
    screens.show_validation(found, as_json)
    if found.refused:
        hard = sum(finding.level == "hard" for finding in found.findings)
        raise DatasetRefused(f"{folder} has {hard} hard findings: follow their remedies")


def _perform(config: "Config") -> "Summary":
    """The flow, with a Prefect server that ends with it.

    While the flow runs, Prefect takes SIGTERM for itself and passes it on to ours afterwards.
    """
    from dreambooth_core.services import prefect_api

    with prefect_api(config.paths.work, _import_flow):
        from flows.train import train_flow

        return train_flow(config)


def _import_flow() -> None:
    import flows.train  # noqa: F401


def _left_behind(config: "Config", started: float, error: BaseException) -> "Summary":
    """The summary that the failed run left, if it got that far."""
    from dreambooth_core.summary import LAST_RUN, Summary, summarise
    from dreambooth_core.summary import Results as Nothing

    last = config.paths.work / LAST_RUN
    if last.is_file() and last.stat().st_mtime >= started:
        return Summary.model_validate_json(last.read_bytes())
    return summarise(config, Nothing(), {}, error)
