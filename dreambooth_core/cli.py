"""`dreambooth`: what a person types. stdout holds what was asked for, stderr everything else.

This is the one module of the core that looks up: `run` imports the flow, inside the command,
because the flow is what it runs. `--help` must answer at once, so nothing heavy is imported before.
"""

import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from dreambooth_core.errors import ConfigError, DatasetRefused, DreamBoothError, Preempted

if TYPE_CHECKING:
    from dreambooth_core.config import Config
    from dreambooth_core.summary import Summary

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A few photos of a subject in, a measured and registered image model out.",
    epilog="Exit codes: 0 done, 2 bad config or arguments, 3 photos refused, 4 a stage failed, "
    "75 stopped and resumable.",
)
configs = typer.Typer(no_args_is_help=True, help="What a config may hold, and what it comes to.")
app.add_typer(configs, name="config")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML config.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override one key; repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]


def main() -> NoReturn:
    """Entry point: turns errors into one sentence on stderr and an exit code."""
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    if not debug:
        _quiet()
    try:
        app(arguments, prog_name="dreambooth")
    except Exception as error:
        if debug:
            raise
        print(f"Error: {_sentence(error)}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, DreamBoothError) else 4)
    sys.exit(0)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks and all logs.")] = False,
) -> None:
    """`main` has taken it out of the arguments already: it may stand anywhere."""


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
    from dreambooth_core import bases, families, screens
    from dreambooth_core.config import load_config

    settings = load_config(config, tuple(overrides or ()))
    bases.check_base(settings.model)
    families.check(families.load_family(settings.model.family), settings)
    if dry_run:
        screens.show_plan(settings, as_json)
        return
    started = time.time()
    with _interruptible():
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
    from dreambooth_core import bases, families, screens, training_alone
    from dreambooth_core.config import load_config

    settings = load_config(config, tuple(overrides or ()))
    bases.check_base(settings.model)
    families.check(families.load_family(settings.model.family), settings)
    if dry_run:
        screens.show_training_plan(training_alone.plan(settings), as_json)
        return
    with _interruptible():
        screens.show_trained(training_alone.train_alone(settings), as_json)


@app.command("families")
def show_families(as_json: AsJson = False) -> None:
    """The model families, what each can be trained by, and how that is tested."""
    from dreambooth_core import screens

    screens.show_families(as_json)


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
    work: Annotated[Path, typer.Option(help="Folder of the local state.")] = Path(".dreambooth"),
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
def validate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of photos.")],
    resolution: Annotated[
        int, typer.Option(min=32, max=2048, help="Side of the training images, in pixels.")
    ] = 512,
    as_json: AsJson = False,
) -> None:
    """Check photos without a config; nothing is changed or stored."""
    from dreambooth_core import dataset, screens
    from dreambooth_core.config import Dataset

    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: name one with the photos of your subject")
    found = dataset.validate(folder, Dataset(), resolution)
    screens.show_validation(found, as_json)
    if found.refused:
        hard = sum(finding.level == "hard" for finding in found.findings)
        raise DatasetRefused(f"{folder} has {hard} hard findings: follow their remedies")


@app.command()
def sample(
    model: Annotated[str, typer.Argument(help="NAME (its candidate), NAME@alias or NAME/version.")],
    prompt: Annotated[
        list[str], typer.Option(help="Template; {subject} is what was learned. Repeatable.")
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Images per prompt.")] = 4,
    out: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("samples"),
    work: Annotated[Path, typer.Option(help="Folder of the local state.")] = Path(".dreambooth"),
    config: Annotated[Path | None, typer.Option(help="Config that says where MLflow is.")] = None,
) -> None:
    """Draw images from a registered model; prints their paths."""
    from dreambooth_core import draw
    from dreambooth_core.config import load_config

    settings = load_config(config) if config else None
    place = settings.paths.work if settings else work
    for path in draw.from_registry(settings, place, model, draw.Wish(tuple(prompt), seeds, out)):
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


@configs.command()
def schema() -> None:
    """JSON schema of a config, for editors."""
    import json

    from dreambooth_core.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))


@configs.command()
def show(config: ConfigFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """The config with every default filled in."""
    from dreambooth_core import screens
    from dreambooth_core.config import load_config

    screens.show_config(load_config(config, tuple(overrides or ())), as_json)


def _perform(config: "Config") -> "Summary":
    """The flow, with a Prefect server that ends with it.

    While the flow runs, Prefect takes SIGTERM for itself and passes it on to ours afterwards.
    """
    from dreambooth_core.services import prefect_api

    with prefect_api(config.paths.work, _import_flow):
        from flows.train import train_flow

        return train_flow(config)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Any order to stop interrupts the block, which then ends as preempted."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as error:
        raise Preempted("stopped: what is done is kept, the same command goes on") from error


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


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, DreamBoothError):
        return text
    kind = type(error).__name__
    return f"{kind}: {text[:400]} (not foreseen; --debug shows where)" if text else kind


def _quiet() -> None:
    """Libraries' logs and warnings are for --debug; Prefect still keeps its own in its database."""
    warnings.filterwarnings("ignore")
    for name, value in {
        "PYTHONWARNINGS": "ignore",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    main()
