"""Text recognition without the vision-language model, and the search for words and numbers in it."""

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from difflib import SequenceMatcher
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dreambooth_core.data.documents.pages import MAX_SIDE, Page
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage.records import Record

if TYPE_CHECKING:
    from PIL.Image import Image

SIMILARITY = 0.8
"""Least ratio of `difflib.SequenceMatcher` of two words that count as equal; numbers must be equal."""
SHORT = 3
"""Letters of the longest word that must be found exactly."""
FUNCTION_WORDS = frozenset(
    [
        *(
            "a",
            "an",
            "and",
            "are",
            "as",
            "at",
            "be",
            "by",
            "for",
            "from",
            "has",
            "have",
            "in",
            "is",
            "it",
        ),
        *("its", "no", "not", "of", "on", "or", "that", "the", "this", "to", "with", "without"),
    ]
)
"""Words that are not searched."""
_TOKEN = re.compile(r"(?:(?<!\w)-)?\d{1,30}(?:[.,]\d{1,30})*(?:e[+-]?\d{1,3})?|[^\W\d_]+")
_SOLID = re.compile(r"[^\W_]+")
"""Letters and digits together: a recognised `st0neware`."""


class TextCheck(Record):
    """Whether the words of a value are in a document's text."""

    field: str
    value: str
    read: bool
    """False: at least one word or number is in neither the text layer nor the recognised text."""
    missing: tuple[str, ...] = ()


class DocumentText:
    """Words and numbers of a document, for fuzzy search."""

    def __init__(self, texts: Iterable[str]) -> None:
        plain = [_plain(text) for text in texts]
        tokens = [token for text in plain for token in _TOKEN.findall(text)]
        self._numbers = {form for token in tokens for form in _numbers(token)}
        solid = {word for text in plain for word in _SOLID.findall(text)}
        self._words = {_stem(one) for one in {*tokens, *solid} if not one.isdigit()}
        self._joined = "".join("".join(_SOLID.findall(text)) for text in plain)

    def check(self, field: str, value: str) -> TextCheck:
        """Search all words and numbers of a value, `FUNCTION_WORDS` excepted."""
        tokens = [one for one in _TOKEN.findall(_plain(value)) if one not in FUNCTION_WORDS]
        missing = tuple(dict.fromkeys(token for token in tokens if not self._has(token)))
        return TextCheck(
            field=field, value=value, read=bool(tokens) and not missing, missing=missing
        )

    def _has(self, token: str) -> bool:
        if numbers := _numbers(token):
            return not numbers.isdisjoint(self._numbers)
        word = _stem(token)
        if word in self._words:
            return True
        if len(word) <= SHORT:
            return False
        # recognition sometimes drops the spaces between words
        return word in self._joined or any(_similar(word, one) for one in self._words)


def recognised(images: "Sequence[Image]") -> Iterator[str]:
    """The text in each image, by RapidOCR (PP-OCR models in its wheel, on the CPU; nothing is sent).

    Raises the error of `check_library`.
    """
    import numpy as np

    engine = _engine()
    for image in images:
        found = engine(np.asarray(image.convert("RGB"))[:, :, ::-1])
        yield "\n".join(found.txts or ())


def check_library() -> None:
    """Raise `ConfigError` if the library of `recognised` is missing."""
    if find_spec("rapidocr") is None or find_spec("onnxruntime") is None:
        raise ConfigError(
            "documents are checked by rapidocr and onnxruntime, which are not installed: "
            "pip install 'dreambooth-factory[documents]'"
        )


def text_of(pages: Sequence[Page]) -> DocumentText:
    """Text layers and recognised text of all pages; raises the error of `recognised`."""
    return DocumentText([*(page.text for page in pages), *recognised([p.image for p in pages])])


@functools.cache
def _engine() -> Any:
    check_library()
    from rapidocr import RapidOCR

    # by default small images are enlarged fourfold and more, at ten times the time
    size = {"Det.limit_type": "max", "Det.limit_side_len": MAX_SIDE}
    return RapidOCR(params={"Global.log_level": "critical", **size})


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().replace("−", "-")


def _stem(word: str) -> str:
    """The word without a plural s."""
    return word[:-1] if len(word) > SHORT and word.endswith("s") else word


def _similar(one: str, other: str) -> bool:
    if abs(len(one) - len(other)) > max(len(one), len(other)) * (1 - SIMILARITY) * 2:
        return False
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return matcher.quick_ratio() >= SIMILARITY and matcher.ratio() >= SIMILARITY


def _numbers(token: str) -> set[Decimal]:
    """The values of a number: `1,234` may be 1.234 or 1234; empty for a word."""
    if not token[-1].isdigit():
        return set()
    whole, separator, last = re.fullmatch(r"(.*?)([.,]?)([^.,]*)", token).groups()  # type: ignore[union-attr]
    forms = [f"{re.sub('[.,]', '', whole)}{separator and '.'}{last}"]
    if re.fullmatch(r"-?\d{1,3}([.,]\d{3})+", token):
        forms.append(re.sub("[.,]", "", token))
    return {Decimal(form).normalize() for form in forms}
