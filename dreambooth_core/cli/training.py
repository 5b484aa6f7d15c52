"""Commands that learn: `run`, `train`, `validate`, `families`, `recipes`.

`run` imports the flow, inside the command, because the flow is what it runs.
"""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_core.cli.options import AsJson, ConfigFile, Overrides, Recipe
from dreambooth_core.cli.signals import interruptible
from dreambooth_core.errors import ConfigError, DatasetRefused

if TYPE_CHECKING:
    from dreambooth_core.config import Config, Subject
    from dreambooth_core.reports.summary import Summary

app = typer.Typer()


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    recipe: Recipe = None,
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print the plan.")] = False,
) -> None:
    """Learn one subject: check, train, measure, register, sample, report.

    Finished stages are reused; a run that was stopped goes on with the same command.
    """
    from dreambooth_core.cli import run_output
    from dreambooth_core.config import load_config
    from dreambooth_core.training import preflight

    settings = load_config(config, tuple(overrides or ()), recipe)
    preflight.check(settings)
    preflight.check_servers(settings)
    if dry_run:
        preflight.check_shapes(settings)
        run_output.show_plan(settings, as_json)
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
        run_output.show_summary(summary)


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    recipe: Recipe = None,
    as_json: AsJson = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved config and the memory plan.")
    ] = False,
) -> None:
    """Photos, class images and training; no evaluation, no registration.

    Goes on from its last checkpoint; what was trained before with the same inputs is found again.
    """
    from dreambooth_core.cli import run_output
    from dreambooth_core.config import load_config
    from dreambooth_core.storage import stores
    from dreambooth_core.training import preflight, standalone

    settings = load_config(config, tuple(overrides or ()), recipe)
    preflight.check(settings)
    if dry_run:
        stores.reach(settings.storage)
        run_output.show_training_plan(standalone.plan(settings), as_json)
        return
    with interruptible():
        run_output.show_trained(standalone.train_alone(settings), as_json)


@app.command("families")
def show_families(as_json: AsJson = False) -> None:
    """The model families, what each can be trained by, and how that is tested."""
    from dreambooth_core.cli import run_output

    run_output.show_families(as_json)


@app.command("recipes")
def show_recipes(as_json: AsJson = False) -> None:
    """Settings to start from, per family and method, for `--recipe NAME`; docs/recipes.md has the sources."""
    from dreambooth_core.cli import run_output

    run_output.show_recipes(as_json)


@app.command()
def validate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of photos.")],
    resolution: Annotated[
        int | None,
        typer.Option(min=32, max=2048, help="Side of the training images, in pixels; 512."),
    ] = None,
    identifier: Annotated[
        str | None, typer.Option(help="The token that captions must hold; sks.")
    ] = None,
    class_noun: Annotated[
        str | None, typer.Option("--class", help="The class noun, for {class_noun} in captions.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Config whose subject, limits and resolution count.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check photos, captions and masks as a run does; nothing is changed or stored."""
    from dreambooth_core.cli import run_output
    from dreambooth_core.config import Dataset, load_config
    from dreambooth_core.data import dataset

    if not os.path.isdir(folder):  # where Path.is_dir raises for a name that is too long
        raise ConfigError(f"{folder} is no folder: name one with the photos of your subject")
    settings = load_config(config) if config else None
    subject = _subject(folder, settings, identifier, class_noun)
    rules = settings.dataset if settings else Dataset()
    side = resolution or (settings.model.resolution if settings else 512)
    found = dataset.validate(folder, rules, side, subject)
    run_output.show_validation(found, as_json)
    if not as_json and subject.captions:
        print(f"Captions were checked for the identifier {subject.identifier}")
    if found.refused:
        hard = sum(finding.level == "hard" for finding in found.findings)
        raise DatasetRefused(f"{folder} has {hard} hard findings: follow their remedies")


def _subject(
    folder: Path, config: "Config | None", identifier: str | None, class_noun: str | None
) -> "Subject":
    """The config's subject whose folder it is, else its first, else one by the options alone."""
    from dreambooth_core.config import Subject

    given = {"identifier": identifier, "class_noun": class_noun}
    changes = {name: value for name, value in given.items() if value is not None}
    if config is None:
        return Subject(images=folder, **{"class_noun": "subject", **changes})
    own = [
        subject
        for subject in config.subjects
        if isinstance(subject.images, Path) and subject.images.resolve() == folder.resolve()
    ]
    return (own or [config.subject])[0].model_copy(update=changes)


def _perform(config: "Config") -> "Summary":
    """The flow, with a Prefect server that ends with it.

    While the flow runs, Prefect takes SIGTERM for itself and passes it on to ours afterwards.
    """
    from dreambooth_core.servers.local import prefect_api

    with prefect_api(config.paths.work, _import_flow):
        from flows.train import train_flow

        return train_flow(config)


def _import_flow() -> None:
    import flows.train  # noqa: F401


def _left_behind(config: "Config", started: float, error: BaseException) -> "Summary":
    """The summary that the failed run left, if it got that far."""
    from dreambooth_core.reports.summary import LAST_RUN, Summary, summarise
    from dreambooth_core.reports.summary import StageResults as Nothing

    last = config.paths.work / LAST_RUN
    if last.is_file() and last.stat().st_mtime >= started:
        return Summary.model_validate_json(last.read_bytes())
    return summarise(config, Nothing(), {}, error)
