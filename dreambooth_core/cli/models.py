"""Commands about trained models: in and out of service, where from, how different, elsewhere."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_core.cli.options import AsJson, Overrides, Work
from dreambooth_core.errors import ConfigError, StageFailed

if TYPE_CHECKING:
    from dreambooth_core.config import Config
    from dreambooth_core.registry.aliases import AliasState

app = typer.Typer()


Model = Annotated[str, typer.Argument(help="NAME (its candidate), NAME@alias or NAME/version.")]
Place = Annotated[Path | None, typer.Option(help="Config that says where MLflow is.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
By = Annotated[str | None, typer.Option(help="Who does it; the user of this machine otherwise.")]


class Alias(StrEnum):
    """What a version can be promoted to."""

    champion = "champion"


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
    from dreambooth_core.registry import outputs

    for path in outputs.export_model(
        model, form, out or Path("exports") / form, work, tuple(overrides or ())
    ):
        print(path)


@app.command()
def compare(
    left: Annotated[Path, typer.Argument(help="summary.json of a run, or its folder.")],
    right: Annotated[Path, typer.Argument(help="summary.json of another run, or its folder.")],
    out: Annotated[Path, typer.Option(help="The page to write.", dir_okay=False)] = Path(
        "comparison.html"
    ),
) -> None:
    """Put the reports of two runs side by side on one page."""
    from dreambooth_core.reports.comparison import compare_runs

    print(compare_runs(left, right, out))


@app.command("models")
def list_models(
    as_json: AsJson = False, work: Work = Path(".dreambooth"), config: Place = None
) -> None:
    """List the registered models: versions, aliases, what the gate said, scores."""
    from dreambooth_core.cli import model_output
    from dreambooth_core.registry import listing

    settings, place = _where(config, work)
    model_output.show_models(listing.list_versions(settings, place), as_json)


@app.command()
def promote(
    model: Model,
    to: Annotated[Alias, typer.Option(help="The alias.")] = Alias.champion,
    reason: Annotated[str, typer.Option(help="Why, when the gate has not said promote.")] = "",
    by: By = None,
    yes: Yes = False,
    as_json: AsJson = False,
    work: Work = Path(".dreambooth"),
    config: Place = None,
) -> None:
    """Put a version into service; the one before it stays as `previous`.

    What the gate has refused needs --reason, and bears the name of who gave it.
    """
    from dreambooth_core.cli import model_output
    from dreambooth_core.registry import listing, promotion
    from dreambooth_core.storage import records

    settings, place = _where(config, work)
    with listing.opened_version(settings, place, model) as one:
        found, before = one.found, one.log.state
        _confirm(f"Make {found.name}/{found.version} the {to.value}?", yes)
        request = promotion.PromotionRequest(found.version, by or records.current_user(), reason)
        state = promotion.promote(found.config, one.store, request)
    _tell(found.name, before, state, f"{request.by} put {found.name}/{found.version} into service")
    model_output.show_aliases(found.name, state, as_json)


@app.command()
def rollback(
    model: Annotated[
        str,
        typer.Argument(help="NAME, or the champion's NAME/VERSION, which a script may say twice."),
    ],
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    by: By = None,
    yes: Yes = False,
    as_json: AsJson = False,
    work: Work = Path(".dreambooth"),
    config: Place = None,
) -> None:
    """Take the champion out of service: the one before it is champion again."""
    from dreambooth_core.cli import model_output
    from dreambooth_core.registry import listing, promotion
    from dreambooth_core.storage import records

    settings, place = _where(config, work)
    wanted = model if "/" in model or "@" in model else f"{model}@champion"
    with listing.opened_version(settings, place, wanted) as one:
        found, before = one.found, one.log.state
        _confirm(f"Take {found.name}/{found.version} out of service?", yes)
        request = promotion.PromotionRequest(found.version, by or records.current_user(), reason)
        state = promotion.rollback(found.config, one.store, request)
    said = f"{request.by} took {found.name}/{found.version} out of service"
    _tell(found.name, before, state, said)
    model_output.show_aliases(found.name, state, as_json)


@app.command()
def lineage(
    model: Model,
    as_json: AsJson = False,
    work: Work = Path(".dreambooth"),
    config: Place = None,
) -> None:
    """Show all that a version comes from: photos, class images, base, config, code, scores, aliases."""
    from dreambooth_core.cli import model_output
    from dreambooth_core.registry import listing
    from dreambooth_core.registry.lineage import lineage_of

    settings, place = _where(config, work)
    with listing.opened_version(settings, place, model) as one:
        traced = lineage_of(one.store, one.log, one.found.version)
    model_output.show_lineage(traced, as_json)


@app.command()
def diff(
    left: Annotated[str, typer.Argument(metavar="A", help="NAME, NAME@alias or NAME/version.")],
    right: Annotated[str, typer.Argument(metavar="B", help="The same, of another one.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also write a page here, with their images side by side.", dir_okay=False
        ),
    ] = None,
    as_json: AsJson = False,
    work: Work = Path(".dreambooth"),
    config: Place = None,
) -> None:
    """Compare two versions: config, data, metrics, and images of the same prompt and seed."""
    from dreambooth_core.cli import model_output
    from dreambooth_core.registry import diff as differences
    from dreambooth_core.registry import listing

    settings, place = _where(config, work)
    with (
        listing.opened_version(settings, place, left) as one,
        listing.opened_version(settings, place, right) as other,
    ):
        sides = [
            differences.version_side(each.store, each.log, each.found.version)
            for each in (one, other)
        ]
        found = differences.version_diff(*sides)
        if out is not None:
            differences.write_diff_page(out, *sides)
    model_output.show_difference(found, as_json)


@app.command()
def serve(
    model: Model,
    port: Annotated[int, typer.Option(min=1, max=65535, help="On loopback.")] = 5001,
    work: Work = Path(".dreambooth"),
    config: Place = None,
) -> None:
    """Answer requests with images until interrupted: `mlflow models serve`, with the store at hand."""
    from dreambooth_core.config.compute import WORK
    from dreambooth_core.registry import listing
    from dreambooth_core.runtime.processes import supervised
    from dreambooth_core.tracking import mlflow as tracking

    settings, place = _where(config, work)
    with listing.opened_version(settings, place, model) as one:
        found = one.found
        uri = tracking.tracking_uri(found.config)
        # MLflow looks its own programs up by name, which nobody's shell need know
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        ours = {"MLFLOW_TRACKING_URI": uri, WORK: str(place.resolve()), "PATH": programs}
        command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
        command += ["-m", f"models:/{found.name}/{found.version}", "-p", str(port)]
        with supervised(command, env={**os.environ, **ours}) as server:
            server.wait()
    if server.returncode:
        raise StageFailed(f"mlflow models serve ended with status {server.returncode}")


def _where(config: Path | None, work: Path) -> "tuple[Config | None, Path]":
    """Where MLflow is: by a config, or below a work folder."""
    if config is None:
        return None, work
    from dreambooth_core.config import load_config

    settings = load_config(config)
    return settings, settings.paths.work


def _confirm(question: str, yes: bool) -> None:
    """Asks a person; without a terminal only --yes will do."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} There is no terminal to ask at: add --yes")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)


def _tell(name: str, before: "AliasState", now: "AliasState", sentence: str) -> None:
    """Prefect's server hears of another version in service, for what waits for it; if there is a server."""
    from tasks.events import MODEL_PROMOTED, emit, model_event

    if now.champion is not None and now.champion != before.champion:
        emit(model_event(MODEL_PROMOTED, name, now.champion, sentence))
