"""Commands on training: `run`, `train`, `validate`, `families`, `recipes`.

`run` imports the flow inside the command.
"""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_core import console
from dreambooth_core.cli.options import AsJson, ConfigFile, Overrides, Recipe, subject_of
from dreambooth_core.cli.services import services
from dreambooth_core.cli.signals import interruptible
from dreambooth_core.cli.starting import Base, ClassNoun, Name, Steps, write_config
from dreambooth_core.errors import ConfigError, DatasetRefused

if TYPE_CHECKING:
    from dreambooth_core.config import Config, Subject
    from dreambooth_core.data.findings import Validation
    from dreambooth_core.reports.summary import Summary

app = typer.Typer()


@app.command()
def run(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG|FOLDER", help="A YAML config, or a folder of photos.")
    ],
    overrides: Overrides = None,
    recipe: Recipe = None,
    as_json: AsJson = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan.")
    ] = False,
    class_noun: ClassNoun = None,
    name: Name = None,
    base: Base = None,
    steps: Steps = None,
) -> None:
    """Run all stages: validate, train, evaluate, register, sample, report.

    Finished stages are reused; the same command resumes a stopped run. For a folder of photos a
    config is written first, as by `init`.
    """
    from dreambooth_core.cli import run_output
    from dreambooth_core.config import load_config
    from dreambooth_core.training import preflight

    if config.is_dir():
        config = write_config(config, class_noun, name, base, recipe, steps)
        console.say(f"the config of this run is {config}")
        recipe = None
    elif given := [option for option in (class_noun, name, base, steps) if option is not None]:
        raise ConfigError(
            f"{config} is a config: --class, --name, --base and --steps are for a folder of photos "
            f"(given: {given[0]}); use --set"
        )
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
            summary = _run_flow(settings)
        except (Exception, KeyboardInterrupt) as error:
            if as_json:
                print(_summary_after(settings, started, error).model_dump_json(indent=2))
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
    gpu: Annotated[
        float | None,
        typer.Option(
            metavar="GIB", min=0.1, max=10**6, help="With --dry-run: plan for a GPU of this memory."
        ),
    ] = None,
) -> None:
    """Validate photos, generate class images and train; no evaluation or registration.

    Resumes from the last checkpoint; weights already trained from the same inputs are reused.
    """
    from dreambooth_core.cli import run_output
    from dreambooth_core.config import load_config
    from dreambooth_core.storage import stores
    from dreambooth_core.training import preflight, standalone

    settings = load_config(config, tuple(overrides or ()), recipe)
    preflight.check(settings)
    if dry_run:
        stores.reach(settings.storage)
        run_output.show_training_plan(standalone.plan(settings, gpu), as_json)
        return
    if gpu is not None:
        raise typer.BadParameter("--gpu plans for another machine: add --dry-run")
    with interruptible():
        run_output.show_trained(standalone.train_alone(settings), as_json)


@app.command("families")
def show_families(as_json: AsJson = False) -> None:
    """List the model families, their training methods and test coverage."""
    from dreambooth_core.cli import run_output

    run_output.show_families(as_json)


@app.command("recipes")
def show_recipes(as_json: AsJson = False) -> None:
    """List the recipes for `--recipe NAME`; docs/recipes.md has their sources."""
    from dreambooth_core.cli import run_output

    run_output.show_recipes(as_json)


@app.command()
def validate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of photos.")],
    resolution: Annotated[
        int | None,
        typer.Option(min=32, max=2048, help="Side of training images in pixels; default: 512."),
    ] = None,
    identifier: Annotated[
        str | None, typer.Option(help="Identifier that captions must contain; default: sks.")
    ] = None,
    class_noun: Annotated[
        str | None, typer.Option("--class", help="Class noun, for {class_noun} in captions.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Config with subject, limits and resolution.")
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Write a PNG with each photo beside its mask; without a config by saliency."
        ),
    ] = None,
    check_noun: Annotated[
        bool,
        typer.Option(
            "--check-noun", help="Check with a classifier that the photos show the class."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check photos, captions and masks as a run does, without storing the photos; --masks writes a PNG.

    With dataset.second_opinion in the config, the model of its section vision is asked too; answers are
    cached in the store.
    """
    from dreambooth_core.cli import photo_views, run_output
    from dreambooth_core.config import Dataset, load_config
    from dreambooth_core.data import dataset

    if not os.path.isdir(folder):  # where Path.is_dir raises for a name that is too long
        raise ConfigError(f"{folder} is not a folder: name one with photos of the subject")
    settings = load_config(config) if config else None
    subject = _subject(folder, settings, identifier, class_noun)
    rules = settings.dataset if settings else Dataset()
    side = resolution or (settings.model.resolution if settings else 512)
    if check_noun and class_noun is None and settings is None:
        raise ConfigError("--check-noun needs the class noun: give it by --class or --config")
    if settings is not None and rules.second_opinion is not None:
        found = _second_opinion(settings, folder, subject, side)
    else:
        found = dataset.validate(folder, rules, side, subject)
    found = photo_views.with_noun_check(found, folder, rules, subject, settings, check_noun)
    shown = None
    if masks is not None:
        found, shown = photo_views.with_masks(found, folder, rules, subject, settings, masks)
    run_output.show_validation(found, as_json, shown)
    if not as_json and subject.captions:
        print(f"Captions were checked for the identifier {subject.identifier}")
    if found.refused:
        hard = sum(finding.level == "hard" for finding in found.findings)
        raise DatasetRefused(f"{folder} has {hard} hard findings: follow their remedies")


def _subject(
    folder: Path, config: "Config | None", identifier: str | None, class_noun: str | None
) -> "Subject":
    """The config's subject with this folder, else its first one; without a config, one from the options."""
    given = {"identifier": identifier, "class_noun": class_noun}
    changes = {name: value for name, value in given.items() if value is not None}
    if config is None:
        return subject_of({"images": folder, "class_noun": "subject", **changes})
    own = [
        subject
        for subject in config.subjects
        if isinstance(subject.images, Path) and subject.images.resolve() == folder.resolve()
    ]
    return subject_of({**(own or [config.subject])[0].model_dump(), **changes})


def _second_opinion(config: "Config", folder: Path, subject: "Subject", side: int) -> "Validation":
    """The checks of a folder with those by the config's vision-language model."""
    from dreambooth_core.data import dataset
    from dreambooth_core.data.second_opinion import opened_model
    from dreambooth_core.storage.stores import open_store

    with services(config), opened_model(config, open_store(config.storage)) as model:
        return dataset.validate(folder, config.dataset, side, subject, model)


def _run_flow(config: "Config") -> "Summary":
    """Run the flow with a temporary Prefect server, unless one is configured.

    While the flow runs, Prefect handles SIGTERM and then calls our handler.
    """
    from dreambooth_core.servers.local import prefect_api

    with prefect_api(config.paths.work, _import_flow):
        from flows.train import train_flow

        return train_flow(config)


def _import_flow() -> None:
    import flows.train  # noqa: F401


def _summary_after(config: "Config", started: float, error: BaseException) -> "Summary":
    """The summary that the failed run wrote, else one without results."""
    from dreambooth_core.reports.summary import LAST_RUN, StageResults, Summary, summarise

    last = config.paths.work / LAST_RUN
    if last.is_file() and last.stat().st_mtime >= started:
        return Summary.model_validate_json(last.read_bytes())
    return summarise(config, StageResults(), {}, error)
