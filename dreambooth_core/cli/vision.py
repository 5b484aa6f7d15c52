"""`dreambooth vision`: checks of the configured vision-language model."""

from pathlib import Path
from typing import Annotated

import typer

from dreambooth_core.cli.options import AsJson

app = typer.Typer(no_args_is_help=True, help="Checks of the configured vision-language model.")


@app.callback()
def _group() -> None:
    """Keeps `vision` a group while it has a single command."""


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
