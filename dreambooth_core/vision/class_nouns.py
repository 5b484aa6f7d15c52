"""Class nouns checked by a classifier of ImageNet: whether images show what a noun says.

A soft check. A noun without a label is not checked, and a right noun may fail for unusual pictures.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL.Image import Image

from dreambooth_core.vision import identity_encoders

COUNT = 5
"""Likeliest labels of an image among which one of the noun's must be."""
LEAST = 0.5
"""Least share of images with such a label."""
LABELS = Path(identity_encoders.__file__).with_name("imagenet_labels.txt")
"""A line per label, its names separated by commas."""


def _indices(*spans: tuple[int, int] | int) -> frozenset[int]:
    """Label indices of single labels and of spans, whose ends are inclusive."""
    pairs = [(span, span) if isinstance(span, int) else span for span in spans]
    return frozenset(index for first, last in pairs for index in range(first, last + 1))


GROUPS = {
    "bear": _indices((294, 297)),
    "bird": _indices((7, 24), (80, 100), (127, 146)),
    "boat": _indices(472, 554, 576, 625, 814, 914, 484, 780, 871),
    "car": _indices(407, 436, 468, 511, 609, 627, 656, 661, 751, 817),
    "cat": _indices((281, 285)),
    "chicken": _indices(7, 8),
    "clock": _indices(409, 530, 892),
    "dog": _indices((151, 268)),
    "fish": _indices((0, 6), (389, 397)),
    "glasses": _indices(836, 837),
    "monkey": _indices((365, 382)),
    "mug": _indices(504),
    "rabbit": _indices((330, 332)),
    "shoe": _indices(502, 514, 630, 770, 774),
    "snake": _indices((52, 68)),
    "sneaker": _indices(770),
    "stuffed animal": _indices(850),
    "turtle": _indices((33, 37)),
}
"""Nouns whose labels do not all contain them, such as the breeds of dogs."""
SYNONYMS = {
    "kitten": "cat",
    "plush": "stuffed animal",
    "plushie": "stuffed animal",
    "puppy": "dog",
    "sunglasses": "glasses",
    "trainers": "sneaker",
}


@runtime_checkable
class Classifier(Protocol):
    """A classifier with ImageNet's 1,000 labels."""

    def likeliest_labels(self, images: Sequence[Image], count: int = COUNT) -> list[list[int]]:
        """Label indices of each image, the likeliest first."""
        ...


@dataclass(frozen=True)
class NounCheck:
    """Result of checking a noun on some images."""

    noun: str
    images: int
    shown: tuple[bool, ...]
    """Whether a label of the noun is among the `COUNT` likeliest, per image."""
    likeliest: str
    """The most frequent likeliest label."""

    @property
    def passed(self) -> bool:
        return sum(self.shown) >= LEAST * self.images

    def sentence(self, what: str) -> str:
        """What was found in `what`, such as "photos"."""
        return (
            f"{sum(self.shown)} of {self.images} {what} show a {self.noun} among ImageNet's {COUNT} "
            f"likeliest labels; the most frequent label is {self.likeliest}"
        )


def load_classifier(identity: str) -> Classifier | None:
    """The classifier of a packaged identity encoder; None for another encoder."""
    if not identity.startswith(identity_encoders.PREFIX):
        return None
    encoder = identity_encoders.load_identity_encoder(identity, None, "own")
    return encoder if isinstance(encoder, Classifier) else None


def check_noun(classifier: Classifier, images: Sequence[Image], noun: str) -> NounCheck | None:
    """The check's result; None without images, or for a noun that no label has."""
    wanted = labels_of(noun)
    if not wanted or not images:
        return None
    found = classifier.likeliest_labels(images)
    best = [labels[0] for labels in found]
    return NounCheck(
        noun=noun,
        images=len(images),
        shown=tuple(not wanted.isdisjoint(labels) for labels in found),
        likeliest=names()[max(best, key=best.count)][0],
    )


def labels_of(noun: str) -> frozenset[int]:
    """Label indices of a noun: its group, else labels with a name that is the noun or ends with it.

    Empty for a noun that no label has. "milk can" is a can; "can opener" is none.
    """
    word = " ".join(noun.lower().split())
    word = SYNONYMS.get(word, word)
    if word in GROUPS:
        return GROUPS[word]
    return frozenset(
        index
        for index, label in enumerate(names())
        if any(name == word or name.endswith(f" {word}") for name in label)
    )


@functools.cache
def names() -> tuple[tuple[str, ...], ...]:
    """Names of every label in lower case, the most common one first."""
    lines = LABELS.read_text(encoding="utf-8").splitlines()
    return tuple(tuple(line.lower().split(", ")) for line in lines)
