"""Commands on trained models: export, list, promote, roll back, lineage, diff, serve."""

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
RegistryConfig = Annotated[
    Path | None, typer.Option(help="Config with MLflow's location; default: the work folder's.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]
By = Annotated[
    str | None, typer.Option(help="Name of the person who decides; default: the current user.")
]


class Alias(StrEnum):
    """Alias that a version can be promoted to."""

    champion = "champion"


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(
            help="NAME, NAME@alias or NAME/version; or the config of a finished training."
        ),
    ],
    form: Annotated[str, typer.Option("--format", help="A format of the list above.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files; default: exports/FORMAT.")
    ] = None,
    work: Work = Path(".dreambooth"),
    overrides: Overrides = None,
) -> None:
    """Export a trained model for other programs; prints the paths.

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
    """Write a page with the reports of two runs side by side."""
    from dreambooth_core.reports.comparison import compare_runs

    print(compare_runs(left, right, out))


@app.command("models")
def list_models(
    as_json: AsJson = False, work: Work = Path(".dreambooth"), config: RegistryConfig = None
) -> None:
    """List registered model versions with aliases, gate decision and scores."""
    from dreambooth_core.cli import model_output
    from dreambooth_core.registry import listing

    settings, folder = _registry(config, work)
    model_output.show_models(listing.list_versions(settings, folder), as_json)


@app.command()
def promote(
    model: Model,
    to: Annotated[Alias, typer.Option(help="The alias.")] = Alias.champion,
    reason: Annotated[str, typer.Option(help="Reason; required if the gate did not promote.")] = "",
    by: By = None,
    yes: Yes = False,
    as_json: AsJson = False,
    work: Work = Path(".dreambooth"),
    config: RegistryConfig = None,
) -> None:
    """Make a version the champion; the one before it becomes `previous`.

    A version that the gate did not promote needs --reason, which is recorded with the name of --by.
    """
    from dreambooth_core.cli import model_output
    from dreambooth_core.registry import listing, promotion
    from dreambooth_core.storage import records

    settings, folder = _registry(config, work)
    with listing.opened_version(settings, folder, model) as one:
        found, before = one.found, one.log.state
        _confirm(f"Make {found.name}/{found.version} the {to.value}?", yes)
        request = promotion.PromotionRequest(found.version, by or records.current_user(), reason)
        state = promotion.promote(found.config, one.store, request)
    reason = f"{request.by} promoted {found.name}/{found.version}"
    _send_event(found.name, before, state, reason)
    model_output.show_aliases(found.name, state, as_json)


@app.command()
def rollback(
    model: Annotated[
        str,
        typer.Argument(help="NAME, or the champion's NAME/VERSION to make a repeated call safe."),
    ],
    reason: Annotated[str, typer.Option(help="Reason.")] = "",
    by: By = None,
    yes: Yes = False,
    as_json: AsJson = False,
    work: Work = Path(".dreambooth"),
    config: RegistryConfig = None,
) -> None:
    """Make the previous version the champion again."""
    from dreambooth_core.cli import model_output
    from dreambooth_core.registry import listing, promotion
    from dreambooth_core.storage import records

    settings, folder = _registry(config, work)
    wanted = model if "/" in model or "@" in model else f"{model}@champion"
    with listing.opened_version(settings, folder, wanted) as one:
        found, before = one.found, one.log.state
        _confirm(f"Roll back from {found.name}/{found.version}?", yes)
        request = promotion.PromotionRequest(found.version, by or records.current_user(), reason)
        state = promotion.rollback(found.config, one.store, request)
    reason = f"{request.by} rolled {found.name}/{found.version} back"
    _send_event(found.name, before, state, reason)
    model_output.show_aliases(found.name, state, as_json)


@app.command()
def lineage(
    model: Model,
    as_json: AsJson = False,
    work: Work = Path(".dreambooth"),
    config: RegistryConfig = None,
) -> None:
    """Show a version's lineage: photos, class images, base, config, code, scores, aliases."""
    from dreambooth_core.cli import model_output
    from dreambooth_core.registry import listing
    from dreambooth_core.registry.lineage import lineage_of

    settings, folder = _registry(config, work)
    with listing.opened_version(settings, folder, model) as one:
        traced = lineage_of(one.store, one.log, one.found.version)
    model_output.show_lineage(traced, as_json)


@app.command()
def diff(
    left: Annotated[str, typer.Argument(metavar="A", help="NAME, NAME@alias or NAME/version.")],
    right: Annotated[str, typer.Argument(metavar="B", help="Another one, in the same form.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also write a page with their images side by side to this file.", dir_okay=False
        ),
    ] = None,
    as_json: AsJson = False,
    work: Work = Path(".dreambooth"),
    config: RegistryConfig = None,
) -> None:
    """Compare two versions: config, data, metrics, and images of the same prompt and seed."""
    from dreambooth_core.cli import model_output
    from dreambooth_core.registry import diff as differences
    from dreambooth_core.registry import listing

    settings, folder = _registry(config, work)
    with (
        listing.opened_version(settings, folder, left) as one,
        listing.opened_version(settings, folder, right) as other,
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
    config: RegistryConfig = None,
) -> None:
    """Serve a model over HTTP until interrupted, by `mlflow models serve`."""
    from dreambooth_core.config.compute import WORK
    from dreambooth_core.registry import listing
    from dreambooth_core.runtime.processes import supervised
    from dreambooth_core.tracking import mlflow as tracking

    settings, folder = _registry(config, work)
    with listing.opened_version(settings, folder, model) as one:
        found = one.found
        uri = tracking.tracking_uri(found.config)
        # MLflow starts its programs by name, which may be missing from the shell's PATH
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        ours = {"MLFLOW_TRACKING_URI": uri, WORK: str(folder.resolve()), "PATH": programs}
        command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
        command += ["-m", f"models:/{found.name}/{found.version}", "-p", str(port)]
        with supervised(command, env={**os.environ, **ours}) as server:
            server.wait()
    if server.returncode:
        raise StageFailed(f"mlflow models serve ended with status {server.returncode}")


def _registry(config: Path | None, work: Path) -> "tuple[Config | None, Path]":
    """The config, if given, and the work folder."""
    if config is None:
        return None, work
    from dreambooth_core.config import load_config

    settings = load_config(config)
    return settings, settings.paths.work


def _confirm(question: str, yes: bool) -> None:
    """Ask for confirmation; raises `ConfigError` without a terminal and --yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} No terminal to ask on: add --yes")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)


def _send_event(name: str, before: "AliasState", now: "AliasState", sentence: str) -> None:
    """Send an event to Prefect's server, if one is configured and the champion has changed."""
    from tasks.events import MODEL_PROMOTED, emit, model_event

    if now.champion is not None and now.champion != before.champion:
        emit(model_event(MODEL_PROMOTED, name, now.champion, sentence))
