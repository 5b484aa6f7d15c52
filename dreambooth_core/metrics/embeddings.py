"""Pictures as the metrics see them: through an encoder, as a whole or as a crop.

What was seen is kept by picture, encoder and view: a second round, or another model beside the same
base, looks only at what is new.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
import torch
from PIL import Image as Pillow

from dreambooth_core.config import Config
from dreambooth_core.metrics import Eye, ImageEmbeddings, Sight, View
from dreambooth_core.storage.blobs import get_blob
from dreambooth_core.storage.records import Blob, Image, ImageSet
from dreambooth_core.storage.stores import Store
from dreambooth_core.storage.tensor_cache import Entry, TensorCache, key_of
from dreambooth_core.vision.crops import MARGIN, crop, detector_digest, regions
from dreambooth_core.vision.detectors import Detector, Region, load_detector
from dreambooth_core.vision.embeddings import Embeddings
from dreambooth_core.vision.encoders import ImageEncoder, encoder_digest

NOWHERE = (0, 0, 0, 0)
"""The box that is kept for a picture without its subject."""


@dataclass(frozen=True)
class StoredImages(Sequence[Pillow.Image]):
    """Stored images as RGB, each decoded whenever it is asked for."""

    store: Store
    images: tuple[Image, ...]

    @overload
    def __getitem__(self, place: int) -> Pillow.Image: ...

    @overload
    def __getitem__(self, place: slice) -> "StoredImages": ...

    def __getitem__(self, place: "int | slice") -> "Pillow.Image | StoredImages":
        if isinstance(place, slice):
            return StoredImages(self.store, self.images[place])
        return _opened(self.store, self.images[place].blob).convert("RGB")

    def __len__(self) -> int:
        return len(self.images)

    def mask(self, place: int) -> Pillow.Image | None:
        """As grey, white on the subject; None for an image that came without."""
        mask = self.images[place].mask
        return None if mask is None else _opened(self.store, mask).convert("L")


@dataclass(frozen=True)
class ImageEmbedder:
    """The encoders and the finder of an evaluation, each loaded only if something was never seen."""

    config: Config
    store: Store

    def see(self, images: Sequence[Image], noun: str, sights: Sequence[Sight]) -> ImageEmbeddings:
        """The images in the `sights` asked for; without a finder, only as wholes.

        `noun` says what the finder is to look for. Raises `ModelError` when an encoder or the finder
        is missing.
        """
        pictures = StoredImages(self.store, tuple(images))
        found = None
        if self.config.evaluation.detector.kind is not None:
            found = self._spots(pictures, noun)
        rows = {
            sight: rows
            for sight in sights
            if (rows := self._rows(pictures, noun, found, sight)) is not None
        }
        return ImageEmbeddings(rows, pictures, tuple(image.blob.sha256 for image in images), found)

    def read(self, texts: Sequence[str]) -> Embeddings:
        """(texts, e) by CLIP's text tower."""
        keys = [key_of(text=text, encoder=self._digests["clip"]) for text in texts]

        def compute(missing: list[int]) -> Iterator[Entry]:
            rows = self._clip.clip_texts([texts[place] for place in missing])
            yield from ({"row": torch.from_numpy(row)} for row in rows)

        return _stacked(self._cache("texts").fetch(keys, compute).entries)

    def _rows(
        self,
        pictures: StoredImages,
        noun: str,
        found: tuple[Region | None, ...] | None,
        sight: Sight,
    ) -> Embeddings | None:
        """(images, d), nan where the subject is not found; None when that is everywhere."""
        eye, view = sight
        spotted = found or (None,) * len(pictures)
        places = [n for n, spot in enumerate(spotted) if view == "whole" or spot is not None]
        if not places:
            return None
        keys = [self._key(pictures.images[place], noun, sight) for place in places]

        def compute(missing: list[int]) -> Iterator[Entry]:
            shown = [_view(pictures[places[n]], spotted[places[n]], view) for n in missing]
            yield from ({"row": torch.from_numpy(row)} for row in self._look(eye, shown))

        seen = _stacked(self._cache("sights").fetch(keys, compute).entries)
        rows = np.full((len(pictures), seen.shape[1]), np.nan)
        rows[places] = seen
        return rows

    def _spots(self, pictures: StoredImages, noun: str) -> tuple[Region | None, ...]:
        keys = [key_of(**self._sought(image, noun)) for image in pictures.images]

        def compute(missing: list[int]) -> Iterator[Entry]:
            masks = [pictures.mask(place) for place in missing]
            shown = [pictures[place] for place in missing]
            finder = self._finder if None in masks else None
            yield from (_packed(spot) for spot in regions(finder, shown, noun, masks))

        entries = self._cache("spots").fetch(keys, compute).entries
        return tuple(_unpacked(entry) for entry in entries)

    def _key(self, image: Image, noun: str, sight: Sight) -> str:
        eye, view = sight
        place = {"margin": MARGIN, **self._sought(image, noun)} if view != "whole" else {}
        rule = self.config.evaluation.preprocessing
        seen = {"image": image.blob.sha256, "view": view, "preprocessing": rule, **place}
        return key_of(encoder=self._digests[eye], eye=eye, **seen)

    def _sought(self, image: Image, noun: str) -> dict[str, object]:
        """All that decides where the subject is found."""
        mask = image.mask.sha256 if image.mask else None
        finder = self._finder_digest
        return {"image": image.blob.sha256, "mask": mask, "finder": finder, "noun": noun}

    def _look(self, eye: Eye, shown: Sequence[Pillow.Image]) -> Embeddings:
        if eye == "clip":
            return self._clip.clip_images(shown)
        return self._identity.identity_images(shown)

    def _cache(self, kind: str) -> TensorCache:
        return TensorCache(kind, self.config.paths.work / "caches", self.store)

    @cached_property
    def _digests(self) -> dict[Eye, str]:
        rules = self.config.evaluation
        return {
            "clip": encoder_digest(rules.clip, rules.clip_revision),
            "identity": encoder_digest(rules.identity, rules.identity_revision),
        }

    @cached_property
    def _finder_digest(self) -> str | None:
        return detector_digest(self.config.evaluation.detector)

    @cached_property
    def _clip(self) -> ImageEncoder:
        rules = self.config.evaluation
        return ImageEncoder(rules.clip, rules.clip_revision, rules.preprocessing)

    @cached_property
    def _identity(self) -> ImageEncoder:
        rules = self.config.evaluation
        return ImageEncoder(rules.identity, rules.identity_revision, rules.preprocessing)

    @cached_property
    def _finder(self) -> Detector | None:
        return load_detector(self.config.evaluation.detector)


def _view(picture: Pillow.Image, spot: Region | None, view: View) -> Pillow.Image:
    if spot is None or view == "whole":
        return picture
    return crop(picture, spot)


def _packed(spot: Region | None) -> Entry:
    """A spot as tensors; a mask takes a bit per pixel."""
    if spot is None:
        return {"box": torch.tensor(NOWHERE)}
    box = {"box": torch.tensor(spot.box)}
    if spot.mask is None:
        return box
    bits = torch.from_numpy(np.packbits(spot.mask))
    return {**box, "mask": bits, "shape": torch.tensor(spot.mask.shape)}


def _unpacked(entry: Entry) -> Region | None:
    left, top, right, bottom = entry["box"].tolist()
    if (left, top, right, bottom) == NOWHERE:
        return None
    if "mask" not in entry:
        return Region((left, top, right, bottom))
    height, width = entry["shape"].tolist()
    bits = np.unpackbits(entry["mask"].numpy(), count=height * width)
    return Region((left, top, right, bottom), bits.astype(np.bool_).reshape(height, width))


def _opened(store: Store, blob: Blob) -> Pillow.Image:
    return Pillow.open(io.BytesIO(get_blob(store, blob)))


def _stacked(entries: Sequence[Entry]) -> Embeddings:
    return np.stack([entry["row"].numpy() for entry in entries]).astype(np.float64)


def photos_of(store: Store, instance: ImageSet, subject: int = 0) -> StoredImages:
    """The photos of one subject; the config's main one is 0."""
    return StoredImages(store, _members(instance, subject))


def _members(instance: ImageSet, subject: int) -> tuple[Image, ...]:
    return tuple(image for image in instance.images if image.subject == subject)
