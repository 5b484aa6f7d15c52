"""Images with known contents: renders, by `examples.small_world.language_model.check_material`."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = Path(__file__).parent / "material"


class _Truth(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str

    @property
    def image(self) -> "Image":
        from PIL import Image

        with Image.open(FOLDER / self.file) as opened:
            return opened.convert("RGB")


class Photo(_Truth):
    """One subject in a scene."""

    subject: int
    """Photos of equal number show the same subject."""
    class_noun: str
    colour: str
    place: str
    """`on the beach`"""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom as fractions of width and height."""


class Pair(_Truth):
    """Two things: `first` is `relation` `second`."""

    first: str
    second: str
    relation: str
    """`left of` or `above`"""


class Card(_Truth):
    """A printed card."""

    class_noun: str
    colour: str


@dataclass(frozen=True)
class Material:
    """All images of the checks."""

    photos: tuple[Photo, ...]
    pairs: tuple[Pair, ...]
    cards: tuple[Card, ...]


@functools.cache
def material() -> Material:
    truth = json.loads((FOLDER / "truth.json").read_bytes())
    return Material(
        tuple(map(Photo.model_validate, truth["photos"])),
        tuple(map(Pair.model_validate, truth["pairs"])),
        tuple(map(Card.model_validate, truth["cards"])),
    )
