"""Tasks of documents: subject cards, and tables in images."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.config import Config
from dreambooth_core.data.documents.cards import CheckedCard, for_documents
from dreambooth_core.data.documents.tables import CheckedTable
from dreambooth_core.storage.stores import open_store
from tasks.stage import stage

if TYPE_CHECKING:
    from dreambooth_core.vision.language.model import VisionLanguageModel


@stage("subject card")
def read_subject_card(config: Config, documents: tuple[Path, ...]) -> CheckedCard:
    """The card of the documents' subject, checked against their text; see `cards.card_of`."""
    from dreambooth_core.data.documents import cards

    with _model(config) as model:
        return cards.card_of(model, documents, config.dataset)


@stage("table")
def read_table(config: Config, document: Path) -> CheckedTable:
    """The table or chart in an image, checked against its text; see `tables.table_of`."""
    from dreambooth_core.data.documents import tables

    with _model(config) as model:
        return tables.table_of(model, document, config.dataset)


@contextmanager
def _model(config: Config) -> "Iterator[VisionLanguageModel]":
    """The model of `vision`, with answers cached in the store."""
    from dreambooth_core.storage.answer_cache import StoredAnswers
    from dreambooth_core.vision.language.model import VisionLanguageModel

    cache = StoredAnswers(open_store(config.storage))
    with VisionLanguageModel(for_documents(config.vision), cache) as model:
        yield model
