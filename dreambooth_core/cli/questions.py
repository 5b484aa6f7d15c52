"""Command `ask`: questions about a finished run, in one conversation."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_core.cli.options import AsJson, Work
from dreambooth_core.errors import StageFailed, Unanswered

if TYPE_CHECKING:
    from dreambooth_core.reports.run_questions import AnsweredQuestion, RunConversation

app = typer.Typer()


@app.command()
def ask(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="NAME (its candidate), NAME@alias or NAME/version; or the config of a finished run.",
        ),
    ],
    questions: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUESTION...", help="Read from the terminal when left out."),
    ] = None,
    work: Work = Path(".dreambooth"),
    config: Annotated[
        Path | None,
        typer.Option(
            help="Config with MLflow's location and the section vision; default: the run's."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a vision-language model about a run's decision, scores and images.

    Several questions form one conversation. Without any, questions are read line by line until Ctrl-D.
    """
    from dreambooth_core.cli.output import print_json, requests_document, requests_line
    from dreambooth_core.cli.services import with_vision
    from dreambooth_core.config import load_config
    from dreambooth_core.registry import listing
    from dreambooth_core.reports.run_questions import RunConversation
    from dreambooth_core.storage.answer_cache import StoredAnswers
    from dreambooth_core.vision.language.model import VisionLanguageModel

    settings = load_config(config) if config else None
    if Path(run).suffix in (".yaml", ".yml"):
        trained = load_config(Path(run))
        settings, run = settings or trained, trained.name
    folder = settings.paths.work if settings else work
    with listing.opened_version(settings, folder, run) as one:
        details = listing.version_details(one.found, one.store)
        used = with_vision(details.config, settings)
        with VisionLanguageModel(used.vision, StoredAnswers(one.store)) as model:
            conversation = RunConversation(model, one.store, details.run)
            answered, errors = _answers(conversation, questions or _typed(), as_json)
        counts = model.account.counts
        cost = None if used.vision.price is None else counts.cost
    if as_json:
        print_json(
            {
                "run": details.name,
                "answers": [answer.model_dump(mode="json") for answer in answered],
                "unanswered": [{"question": text, "error": error} for text, error in errors],
                "requests": requests_document(counts, cost),
            }
        )
    else:
        print(requests_line(counts, cost))
    if errors and not answered:
        raise StageFailed(
            f"{used.vision.model} answered none of {len(errors)} questions: check vision"
        )


def _answers(
    conversation: "RunConversation", questions: "list[str] | Iterator[str]", as_json: bool
) -> "tuple[list[AnsweredQuestion], list[tuple[str, str]]]":
    """The answers, printed one by one unless `as_json`, and questions without one with their errors."""
    answered: list[AnsweredQuestion] = []
    errors: list[tuple[str, str]] = []
    for question in questions:
        try:
            answer = conversation.ask(question)
        except Unanswered as error:
            errors.append((question, str(error)))
            print(f"not answered: {error}", file=sys.stderr)
            continue
        answered.append(answer)
        if not as_json:
            _print(answer)
    return answered, errors


def _print(answer: "AnsweredQuestion") -> None:
    from dreambooth_core.data.findings import printable

    print(printable(answer.answer))
    print(f"  because {printable(answer.reason)}")
    for prompt in answer.prompts:
        print(f"  {prompt.label}  {printable(prompt.prompt)}")
    for image in answer.images:
        print(f"  {image.label}  seed {image.seed}  {image.uri}")


def _typed() -> Iterator[str]:
    """Lines of stdin until its end; on a terminal with a prompt, on stderr because of `--json`."""
    while True:
        if sys.stdin.isatty():
            print("question> ", end="", file=sys.stderr, flush=True)
        try:
            line = input().strip()
        except EOFError:
            return
        if line:
            yield line
