"""Subject cards: properties of a subject as data, for captions, prompts and questions to models."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError

from dreambooth_core.config.base import Section
from dreambooth_core.config.documents import read_yaml
from dreambooth_core.config.refusals import wrong_fields
from dreambooth_core.errors import ConfigError

Words = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, min_length=1, max_length=120, pattern=r"^[^{}<>|\\\x00-\x1f]+$"
    ),
]
"""A few words without braces (prompt templates), tags or control characters."""
Details = Annotated[tuple[Words, ...], Field(max_length=12)]


class SubjectCard(Section):
    """Properties of one subject, written by hand or read from a document by a vision-language model."""

    name: Annotated[str, StringConstraints(strip_whitespace=True, max_length=120)] = ""
    """The subject's own name ("Mug Aurora"); not used in prompts."""
    class_noun: Words
    """Word for the subject's class: mug, dog, backpack."""
    materials: Details = ()
    """Materials: "stoneware"."""
    colours: Details = ()
    """Colours, with the part if it is not the whole: "blue handle"."""
    must_keep: Details = ()
    """Details that every generated image must have: "white star on the left side"."""
    must_not: Details = ()
    """Details that no generated image may have: "a lid"."""

    @property
    def identity(self) -> tuple[str, ...]:
        """All phrases that describe the subject itself; captions leave them out."""
        return (*self.colours, *self.materials, *self.must_keep)

    @property
    def checklist(self) -> tuple[tuple[str, bool], ...]:
        """Yes/no questions about an image of the subject, each with its right answer."""
        noun = self.class_noun
        kept = ((f"Does the {noun} in the image have this: {one}?", True) for one in self.must_keep)
        not_wanted = ((f"Does the image show this: {one}?", False) for one in self.must_not)
        return (*kept, *not_wanted)


def load_card(path: Path) -> SubjectCard:
    """The card in a YAML file; raises `ConfigError` with one clause per wrong field."""
    try:
        return SubjectCard.model_validate(read_yaml(path, "subject card"))
    except ValidationError as error:
        raise ConfigError(f"{path}: {wrong_fields(error, SubjectCard)}") from error
