"""Subject cards: properties of a subject as data, for captions, prompts and questions to models."""

from typing import Annotated

from pydantic import Field, StringConstraints

from dreambooth_core.config.base import Section

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
