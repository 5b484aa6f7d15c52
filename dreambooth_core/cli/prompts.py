"""`dreambooth prompts`: prompts written and repaired with a vision-language model."""

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dreambooth_core.cli.options import AsJson, Work
from dreambooth_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreambooth_core.config import Config
    from dreambooth_core.config.subject_card import SubjectCard, load_card
    from dreambooth_core.evaluation.prompt_repair import PromptRepair
    from dreambooth_core.evaluation.prompt_writing import WrittenPrompts
    from dreambooth_core.storage.records import Scores
    from dreambooth_core.storage.stores import Store

app = typer.Typer(
    no_args_is_help=True,
    help="Prompts written and repaired with a vision-language model; images are drawn by the tuned model.",
)

YAML = (".yaml", ".yml")


@app.command()
def write(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG|CARD", help="A YAML config, or a subject card in YAML or JSON."
        ),
    ],
    count: Annotated[int, typer.Option(min=1, max=100, help="Prompts to write.")] = 25,
    kind: Annotated[
        Literal["objects", "live"] | None,
        typer.Option(help="Kind of subject; default: decided by the model from the class noun."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write: .yaml for `dreambooth run --recipe FILE`, .csv as sampling job.",
            dir_okay=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model of the sampling job; default: the config's name.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Config with the section vision and the store, for a CARD.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write evaluation and sampling prompts for a subject: scenes, accessories, changed properties."""
    from dreambooth_core.cli.output import (
        print_json,
        print_table,
        requests_document,
        requests_line,
    )
    from dreambooth_core.cli.services import services
    from dreambooth_core.evaluation.prompt_writing import write_prompts
    from dreambooth_core.storage.answer_cache import StoredAnswers
    from dreambooth_core.storage.stores import open_store
    from dreambooth_core.vision.language.model import VisionLanguageModel

    card, settings = _source(source, config)
    _check_out(out, source)
    with services(settings):
        cache = StoredAnswers(open_store(settings.storage))
        with VisionLanguageModel(settings.vision, cache) as vision:
            written = write_prompts(vision, card, count, kind)
    if out is not None:
        _write_file(out, written, model or settings.name)
    counts = vision.account.counts
    cost = None if settings.vision.price is None else counts.cost
    if as_json:
        document = {**written.model_dump(mode="json"), "requests": requests_document(counts, cost)}
        print_json({**document, "out": str(out) if out else None})
        return
    rows = [[kind, one] for kind, templates in written.prompts.items() for one in templates]
    print_table("", ("kind", "prompt"), rows)
    print(
        f"{len(rows)} of {count} prompts written, {written.refused} refused, {written.unreviewed} not "
        f"reviewed, {written.unanswered} questions not answered"
    )
    print(requests_line(counts, cost))


@app.command()
def repair(
    model: Annotated[str, typer.Argument(help="NAME (its candidate), NAME@alias or NAME/version.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Prompt template that failed; {subject} is the subject. Repeatable."),
    ] = None,
    worst: Annotated[
        int,
        typer.Option(min=0, help="Also the N evaluation prompts with the lowest prompt metric."),
    ] = 0,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Most prompts that are drawn.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, max=16, help="Images per round.")] = 2,
    card: Annotated[
        Path | None, typer.Option(help="Subject card, whose properties new prompts leave out.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the best images and repairs.json, with all rounds.")
    ] = Path("samples/repaired"),
    work: Work = Path(".dreambooth"),
    config: Annotated[
        Path | None,
        typer.Option(
            help="Config with MLflow's location and the section vision; default: the model's."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a prompt, ask which of its requirements are visible, rewrite it, and draw again.

    Ends when an image meets all requirements, or after --rounds; the best image is kept.
    """
    from dreambooth_core import console
    from dreambooth_core.cli.output import requests_document, requests_line
    from dreambooth_core.cli.services import with_vision
    from dreambooth_core.config import load_config
    from dreambooth_core.evaluation.prompt_repair import RepairLimits, repair_prompts
    from dreambooth_core.registry import listing
    from dreambooth_core.vision.language.spending import account_of

    settings, limits = load_config(config) if config else None, RepairLimits(rounds, seeds)
    own_card = load_card(card) if card else None
    folder = settings.paths.work if settings else work
    with (
        listing.opened_version(settings, folder, model) as one,
        console.progress_bar("sample") as progress,
    ):
        details = listing.version_details(one.found, one.store)
        used = with_vision(details.config, settings)
        templates = _templates(one.store, details.scores, prompt or [], worst)
        repairs = repair_prompts(
            used, one.store, details.weights, templates, limits, own_card, progress
        )
        counts = account_of(used.vision).counts
        cost = None if used.vision.price is None else counts.cost
        paths = _save_best(one.store, repairs, out, details.name.replace("/", "-v"))
    rows = [
        {**one.model_dump(mode="json"), "passed": one.passed, "path": path}
        for one, path in zip(repairs, paths, strict=True)
    ]
    requests = requests_document(counts, cost)
    document = {"model": details.name, "repairs": rows, "requests": requests}
    text = json.dumps(document, indent=2, ensure_ascii=False)
    _write_text(out / "repairs.json", text)
    if as_json:
        print(text)
        return
    for one_repair, path in zip(repairs, paths, strict=True):
        _print_repair(one_repair, path)
    print(requests_line(counts, cost))


def _source(source: Path, config: Path | None) -> "tuple[SubjectCard, Config]":
    """The subject card and the config with the section vision."""
    from dreambooth_core.cli.services import with_vision
    from dreambooth_core.config import load_config
    from dreambooth_core.config.loading import read_yaml
    from dreambooth_core.config.subject_card import SubjectCard, load_card

    other = load_config(config) if config else None
    if "subject" in read_yaml(source):
        own = load_config(source)
        card = own.subject.card or SubjectCard(class_noun=own.subject.class_noun)
        return card, with_vision(own, other)
    card = load_card(source)
    if other is None:
        raise ConfigError(
            f"{source} is a subject card: give a config with the section vision by --config"
        )
    return card, with_vision(other)


def _check_out(out: Path | None, source: Path) -> None:
    if out is None:
        return
    if out.suffix not in (*YAML, ".csv"):
        raise ConfigError(f"--out {out} must end in .yaml (for --recipe) or .csv (a sampling job)")
    if out.exists() and out.samefile(source):
        raise ConfigError(f"--out {out} is the file that is read: name another one")


def _write_file(out: Path, written: "WrittenPrompts", model: str) -> None:
    import yaml

    from dreambooth_core.evaluation.prompt_writing import config_document, job_rows

    if out.suffix in YAML:
        document = config_document(written)
        _write_text(out, yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110))
        return
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows(job_rows(written, model))
    _write_text(out, file.getvalue())


def _write_text(path: Path, text: str) -> None:
    from dreambooth_core.storage.stores import written_beside

    with written_beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _templates(store: "Store", scores: "Scores", given: list[str], worst: int) -> list[str]:
    """The given templates, and the worst ones of the evaluation."""
    from dreambooth_core.evaluation.prompt_repair import lowest_prompts
    from dreambooth_core.metrics.statistics import rows_of

    found = lowest_prompts(rows_of(store, scores), worst) if worst else []
    if worst and not found:
        raise ConfigError(
            "this version has no prompt metric per image: give --prompt instead of --worst"
        )
    if not (given or found):
        raise ConfigError("no prompt to repair: give --prompt, or --worst N")
    return list(dict.fromkeys([*given, *found]))


def _save_best(
    store: "Store", repairs: "Sequence[PromptRepair]", out: Path, stem: str
) -> list[str | None]:
    """Paths of the best images in `out`; None for a repair without a checked image."""
    from dreambooth_core.storage.blobs import fetch_blob

    paths: list[str | None] = []
    for number, repair in enumerate(repairs):
        if repair.best is None:
            paths.append(None)
            continue
        blob = repair.best.image.blob
        name = f"{stem}-repaired-{number:03d}-{blob.sha256[:8]}.png"
        paths.append(str(fetch_blob(store, blob, out / name)))
    return paths


def _print_repair(repair: "PromptRepair", path: str | None) -> None:
    from dreambooth_core.data.findings import printable

    print(f"{printable(repair.template)}  {'all requirements met' if repair.passed else 'not met'}")
    for number, one in enumerate(repair.rounds, 1):
        shares = ", ".join(f"{image.met:.0%}" if image.checks else "?" for image in one.images)
        print(f"  round {number}: {printable(one.template)} (requirements met per image: {shares})")
    for check in repair.best.checks if repair.best else ():
        mark = "yes" if check.visible else "no"
        print(f"  {mark:>3}  {printable(check.requirement)}: {printable(check.reason)}")
    if repair.unanswered:
        print(f"  {repair.unanswered} questions were not answered")
    if path is not None:
        print(f"  {path}")
