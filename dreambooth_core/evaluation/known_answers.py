"""Questions with known answers about the user's photos and about changed copies of them."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError
from dreambooth_core.metrics.embeddings import photos_of_subject
from dreambooth_core.storage.records import ImageSet
from dreambooth_core.storage.stores import Store
from dreambooth_core.vision import perturbations
from dreambooth_core.vision.crops import regions
from dreambooth_core.vision.detectors import Region, load_detector

if TYPE_CHECKING:
    from PIL.Image import Image

HUES = (10, 30, 60)
"""Degrees by which the subject's hue is rotated."""
LEAST_CHANGE = 4.0
"""Least mean change of the subject's pixels, 0 to 255, by a rotated hue: a grey subject has no hue, and
its photo stays the same."""
PLAIN = {
    "blue": (48, 98, 218),
    "yellow": (248, 212, 52),
    "green": (62, 160, 72),
    "red": (214, 40, 46),
}
"""Background colours."""
MAX_LABELS = 2000


class Label(BaseModel):
    """A line of a file of labelled images."""

    model_config = ConfigDict(extra="forbid")

    image: Path
    """Relative to the file."""
    requirement: str
    """What the image shows or does not show: `on the beach`."""
    true: bool


@dataclass(frozen=True)
class Statement:
    """A picture and a requirement, with the known answer."""

    picture: "Image"
    prompt: str
    requirement: str
    true: bool
    kind: str


@dataclass(frozen=True)
class ChangedPhoto:
    """A photo of the subject and its changed copies."""

    index: int
    noun: str
    photo: "Image"
    hues: Mapping[int, "Image"]
    """Degrees -> copy, without copies that are nearly equal to the photo."""
    blurred: "Image"
    mirrored: "Image"
    plain: "tuple[str, Image] | None"
    """Colour and the subject on it; None if the subject's region is unknown."""


def read_labels(path: Path, config: Config) -> list[Statement]:
    """Statements of a JSON Lines file, one `Label` per line, with their decoded images.

    Raises `ConfigError` for a line that is no label, and `ImageRefused` for an unusable image.
    """
    from dreambooth_core.data import images
    from dreambooth_core.data.files import photo_bytes

    rules = config.dataset
    found: list[Statement] = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if len(found) == MAX_LABELS:
            raise ConfigError(f"{path} has more than {MAX_LABELS} labels: give fewer")
        try:
            label = Label.model_validate(json.loads(line))
        except (ValueError, ValidationError) as error:
            raise ConfigError(
                f"{path}, line {number}, is no label: write "
                '{"image": "a.png", "requirement": "on the beach", "true": true}'
            ) from error
        data = photo_bytes(path.parent / label.image, rules.max_bytes)
        picture = images.decode(data, rules.max_pixels).image
        found.append(
            Statement(picture, label.requirement, label.requirement, label.true, "labelled")
        )
    return found


def changed_photos(
    config: Config, store: Store, instance: ImageSet, limit: int
) -> list[ChangedPhoto]:
    """The main subject's first photos with their changed copies.

    The subject's region is that of the mask, else of `evaluation.detector`; unknown without both.
    """
    stored = photos_of_subject(store, instance)[:limit]
    noun = config.subject.class_noun
    pictures, masks = list(stored), [stored.mask(index) for index in range(len(stored))]
    detector = load_detector(config.evaluation.detector)
    found = regions(detector, pictures, noun, masks)
    pairs = enumerate(zip(pictures, found, strict=True))
    return [_changed(index, noun, photo, region) for index, (photo, region) in pairs]


def _changed(index: int, noun: str, photo: "Image", region: Region | None) -> ChangedPhoto:
    area = perturbations.area_of(photo, region)
    rotated = {degrees: perturbations.with_hue(photo, degrees, area) for degrees in HUES}
    name = list(PLAIN)[index % len(PLAIN)]
    return ChangedPhoto(
        index=index,
        noun=noun,
        photo=photo,
        hues={
            degrees: image
            for degrees, image in rotated.items()
            if perturbations.change_of(photo, image, area) >= LEAST_CHANGE
        },
        blurred=perturbations.blurred(photo),
        mirrored=perturbations.mirrored(photo),
        plain=None if region is None else (name, perturbations.on_plain(photo, PLAIN[name], area)),
    )


def statements(config: Config, photos: Sequence[ChangedPhoto]) -> Iterator[Statement]:
    """As many true as false ones."""
    others = [
        noun for noun in config.evaluation.control_classes if noun != config.subject.class_noun
    ]
    for one in photos:
        pictures = [one.photo, one.mirrored, *([one.plain[1]] if one.plain else [])]
        for picture in pictures:
            yield Statement(picture, one.noun, one.noun, True, "class")
            if others:
                other = others[one.index % len(others)]
                yield Statement(picture, other, other, False, "another class")
        if one.plain:
            for name, kind in (
                (one.plain[0], "background"),
                (_next_colour(one.plain[0]), "another background"),
            ):
                part = f"on a plain {name} background"
                true = name == one.plain[0]
                yield Statement(one.plain[1], f"{one.noun} {part}", part, true, kind)


def _next_colour(name: str) -> str:
    names = list(PLAIN)
    return names[(names.index(name) + 1) % len(names)]


def pairs(photos: Iterable[ChangedPhoto]) -> "Iterator[tuple[int, Image, Image]]":
    """Photo's index, the picture that shows its subject better, and the other one."""
    for one in photos:
        changed = [one.hues[degrees] for degrees in HUES[1:] if degrees in one.hues]
        for worse in (*changed, one.blurred):
            yield one.index, one.photo, worse
        if one.plain and HUES[-1] in one.hues:
            yield one.index, one.plain[1], one.hues[HUES[-1]]


def ladder(photos: Iterable[ChangedPhoto]) -> "Iterator[tuple[int, str, Image]]":
    """Photo's index, name of the change, and the picture."""
    for one in photos:
        yield one.index, "none", one.photo
        for degrees, image in one.hues.items():
            yield one.index, hue_step(degrees), image
        yield one.index, "blur", one.blurred
        yield one.index, "mirror", one.mirrored
        if one.plain:
            yield one.index, "plain background", one.plain[1]


def hue_step(degrees: int) -> str:
    """Name of a ladder's step."""
    return f"hue {degrees}"
