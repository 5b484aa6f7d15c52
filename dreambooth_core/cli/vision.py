"""`dreambooth vision`: checks of the configured vision-language model."""

from pathlib import Path
from typing import Annotated

import typer

from dreambooth_core.cli.options import AsJson, Overrides
from dreambooth_core.errors import ConfigError, StageFailed

app = typer.Typer(no_args_is_help=True, help="Checks of the configured vision-language model.")


@app.command()
def calibrate(
    config: Annotated[
        Path, typer.Option(help="Config with evaluation.judge, the subject's photos and the store.")
    ] = Path("config.yaml"),
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            dir_okay=False,
            help='Labelled images: {"image": "a.png", "requirement": "on the beach", "true": true}.',
        ),
    ] = None,
    photos: Annotated[int, typer.Option(min=1, max=100, help="Most photos to use.")] = 8,
    out: Annotated[
        Path | None, typer.Option(help="Also write the calibration to this file.", dir_okay=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the judge's agreement with known answers, and store it with the judge's digest.

    The gate uses the judge's checklist only after a calibration with at least
    evaluation.judge.min_agreement. No answer is read from the cache.
    """
    from dreambooth_core.cli.vision_output import show_calibration
    from dreambooth_core.config import load_config
    from dreambooth_core.evaluation.calibration import calibrate_on_photos, judge_of
    from dreambooth_core.evaluation.known_answers import read_labels
    from dreambooth_core.servers.local import local_services
    from dreambooth_core.storage.stores import written_beside

    settings = load_config(config)
    judge = judge_of(settings)
    known = read_labels(labels, settings) if labels else []
    with local_services(settings):
        found = calibrate_on_photos(settings, known, photos)
    if out is not None:
        with written_beside(out) as temporary:
            temporary.write_text(found.model_dump_json(indent=2), encoding="utf-8")
    show_calibration(found, judge.min_agreement, as_json)


@app.command()
def check(
    config: Annotated[Path, typer.Option(help="Config with the section vision.")] = Path(
        "config.yaml"
    ),
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure the eight capabilities of the config's model on images with known contents.

    Exit code 4 if one did not pass. Costs about 150 questions; no answer is read from the cache.
    """
    from dreambooth_core.cli.output import print_json, print_table
    from dreambooth_core.config import load_config
    from dreambooth_core.vision.language.model import VisionLanguageModel
    from dreambooth_core.vision_checks.capabilities import check as checked

    settings = load_config(config, tuple(overrides or ()))
    if settings.vision.backend is None:
        raise ConfigError(
            f"{config} has no vision-language model to check: set vision.backend, vision.model and, for a "
            "server, vision.url"
        )
    with VisionLanguageModel(settings.vision) as model:
        found = checked(model, settings)
        counts = model.account.counts
    if as_json:
        print_json({name: one.model_dump(mode="json") for name, one in found.items()})
    else:
        rows = [
            (
                name,
                "yes" if one.passed else "no",
                "-" if one.measured is None else f"{one.measured:.2f}",
                f"{one.limit:.2f}",
                one.missing or one.about,
            )
            for name, one in found.items()
        ]
        columns = ("capability", "passed", "measured", "limit", "measure")
        print_table(f"{settings.vision.model}: {counts}", columns, rows)
    if failed := [name for name, one in found.items() if not one.passed]:
        raise StageFailed(f"{settings.vision.model} did not pass {', '.join(failed)}")
