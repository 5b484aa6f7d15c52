"""`dreambooth dataset card` and `dataset table`: documents to data, by a vision-language model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_core.cli.options import AsJson
from dreambooth_core.cli.services import services
from dreambooth_core.errors import ConfigError

if TYPE_CHECKING:
    from dreambooth_core.config import Config
    from dreambooth_core.vision.language.model import VisionLanguageModel

app = typer.Typer()

VisionConfig = Annotated[
    Path | None, typer.Option(help="Config with the section vision, image limits and store.")
]


@app.command()
def card(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="PDFs, photos of labels, charts.")
    ],
    out: Annotated[Path, typer.Option(help="The card's YAML file.")] = Path("card.yaml"),
    config: VisionConfig = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Check the card at --out against the documents; no model."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing card.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read a subject card from documents with the config's vision-language model, or check a card.

    Each word and number of the card is searched in the documents' text, recognised independently of the
    model; values that are not found are marked in the output and in the file.
    """
    from dreambooth_core.cli import document_output
    from dreambooth_core.config import Dataset, load_config
    from dreambooth_core.config.subject_card import load_card
    from dreambooth_core.data.documents import cards
    from dreambooth_core.data.documents.pages import read_pages
    from dreambooth_core.data.documents.text_search import text_of

    settings = load_config(config) if config else None
    if check:
        rules = settings.dataset if settings else Dataset()
        checked = cards.check_card(load_card(out), text_of(read_pages(files, rules)))
        document_output.show_card(checked, out, False, None, as_json)
        return
    cards.check_free(out, overwrite)
    with _model(settings) as (settings, model):
        checked = cards.card_of(model, files, settings.dataset)
        cards.write_card(out, checked, [path.name for path in files], overwrite)
        document_output.show_card(checked, out, True, model.account, as_json)


@app.command()
def table(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image of a table or chart.")],
    config: VisionConfig = None,
    as_json: AsJson = False,
) -> None:
    """Read the table or the curves in an image with the config's vision-language model.

    Each word and number is searched in the image's text, recognised independently of the model.
    """
    from dreambooth_core.cli import document_output
    from dreambooth_core.config import load_config
    from dreambooth_core.data.documents.tables import table_of

    with _model(load_config(config) if config else None) as (settings, model):
        checked = table_of(model, image, settings.dataset)
        document_output.show_table(checked, model.account, as_json)


@contextmanager
def _model(config: "Config | None") -> "Iterator[tuple[Config, VisionLanguageModel]]":
    """The config and its model with cached answers; raises `ConfigError` without one."""
    from dreambooth_core.data.documents.cards import for_documents
    from dreambooth_core.storage.answer_cache import StoredAnswers
    from dreambooth_core.storage.stores import open_store
    from dreambooth_core.vision.language.model import VisionLanguageModel

    if config is None or config.vision.backend is None:
        raise ConfigError(
            "documents are read by a vision-language model, and none is configured: set vision.backend, "
            "vision.model and, for a server, vision.url in a config, and give it with --config"
        )
    with services(config):
        cache = StoredAnswers(open_store(config.storage))
        with VisionLanguageModel(for_documents(config.vision), cache) as model:
            yield config, model
