"""Image and text embeddings of stored images, cached per image, encoder and view."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
import torch
from PIL import Image as Pillow

from dreambooth_core.config import Config
from dreambooth_core.config import Detector as DetectorOptions
from dreambooth_core.metrics import EmbeddingKey, EncoderName, ImageEmbeddings, View
from dreambooth_core.storage.answer_cache import StoredAnswers
from dreambooth_core.storage.blobs import get_blob
from dreambooth_core.storage.records import Blob, Image, ImageSet
from dreambooth_core.storage.stores import Store
from dreambooth_core.storage.tensor_cache import Entry, TensorCache, key_of
from dreambooth_core.vision.crops import MARGIN, crop, detector_digest, regions
from dreambooth_core.vision.detectors import Detector, Region, is_remote, load_detector
from dreambooth_core.vision.embeddings import Embeddings
from dreambooth_core.vision.encoders import ImageEncoder, encoder_digest
from dreambooth_core.vision.identity_encoders import IdentityEncoder, load_identity_encoder

NO_BOX = (0, 0, 0, 0)
"""The cached box of an image in which the subject was not found."""


@dataclass(frozen=True)
class StoredImages(Sequence[Pillow.Image]):
    """Stored images as RGB, decoded on each access."""

    store: Store
    images: tuple[Image, ...]

    @overload
    def __getitem__(self, index: int) -> Pillow.Image: ...

    @overload
    def __getitem__(self, index: slice) -> "StoredImages": ...

    def __getitem__(self, index: "int | slice") -> "Pillow.Image | StoredImages":
        if isinstance(index, slice):
            return StoredImages(self.store, self.images[index])
        return _opened(self.store, self.images[index].blob).convert("RGB")

    def __len__(self) -> int:
        return len(self.images)

    def mask(self, index: int) -> Pillow.Image | None:
        """Grey levels, white on the subject; None for an image without a mask."""
        mask = self.images[index].mask
        return None if mask is None else _opened(self.store, mask).convert("L")


@dataclass(frozen=True)
class ImageEmbedder:
    """The encoders and the detector of an evaluation, loaded when the cache lacks an entry."""

    config: Config
    store: Store

    def embed(
        self, images: Sequence[Image], noun: str, keys: Sequence[EmbeddingKey]
    ) -> ImageEmbeddings:
        """The images' embeddings for `keys`; without a detector, of whole images only.

        `noun` is the detector's query. Raises `ModelError` when an encoder or the detector is missing.
        """
        stored, found = StoredImages(self.store, tuple(images)), None
        if self.config.evaluation.detector.kind is not None:
            found = self._regions(stored, noun)
        rows = {
            key: rows for key in keys if (rows := self._rows(stored, noun, found, key)) is not None
        }
        return ImageEmbeddings(rows, stored, tuple(image.blob.sha256 for image in images), found)

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """(texts, e) by CLIP's text tower."""
        keys = [key_of(text=text, encoder=self._digests["clip"]) for text in texts]

        def compute(missing: list[int]) -> Iterator[Entry]:
            rows = self._clip.clip_texts([texts[index] for index in missing])
            yield from ({"row": torch.from_numpy(row)} for row in rows)

        return _stacked(self._cache("texts").fetch(keys, compute).entries)

    def embed_pictures(self, pictures: Sequence[Pillow.Image]) -> Embeddings:
        """(pictures, e) by CLIP's image tower, not cached: pictures that are not in the store."""
        return self._clip.clip_images(pictures)

    def digest_of(self, encoder: EncoderName) -> str:
        """SHA-256 of an encoder's files, or of its Hub id and commit."""
        return self._digests[encoder]

    def _rows(
        self,
        images: StoredImages,
        noun: str,
        found: tuple[Region | None, ...] | None,
        key: EmbeddingKey,
    ) -> Embeddings | None:
        """(images, d), nan where the subject is not found; None when it is found in no image."""
        encoder, view = key
        subjects = found or (None,) * len(images)
        usable = [n for n, region in enumerate(subjects) if view == "whole" or region is not None]
        if not usable:
            return None
        cache_keys = [self._cache_key(images.images[n], noun, key) for n in usable]

        def compute(missing: list[int]) -> Iterator[Entry]:
            views = [_view(images[usable[n]], subjects[usable[n]], view) for n in missing]
            if encoder == "clip":
                computed = self._clip.clip_images(views)
            else:
                computed = self._identity.identity_images(views)
            yield from ({"row": torch.from_numpy(row)} for row in computed)

        embedded = _stacked(self._cache("embeddings").fetch(cache_keys, compute).entries)
        rows = np.full((len(images), embedded.shape[1]), np.nan)
        rows[usable] = embedded
        return rows

    @property
    def unanswered(self) -> int:
        """Images so far without a region because a request of the detector failed."""
        detector = self.__dict__.get("_detector")
        return 0 if detector is None else detector.unanswered

    def _regions(self, images: StoredImages, noun: str) -> tuple[Region | None, ...]:
        if is_remote(self.config.evaluation.detector):  # caches its answers, and only those
            masks = [images.mask(index) for index in range(len(images))]
            return tuple(regions(self._detector, list(images), noun, masks))
        keys = [key_of(**self._region_inputs(image, noun)) for image in images.images]

        def compute(missing: list[int]) -> Iterator[Entry]:
            masks = [images.mask(index) for index in missing]
            decoded = [images[index] for index in missing]
            detector = self._detector if None in masks else None
            yield from map(_packed, regions(detector, decoded, noun, masks))

        return tuple(map(_unpacked, self._cache("regions").fetch(keys, compute).entries))

    def _cache_key(self, image: Image, noun: str, key: EmbeddingKey) -> str:
        encoder, view = key
        cropped = {"margin": MARGIN, **self._region_inputs(image, noun)} if view == "crop" else {}
        return key_of(
            **{"image": image.blob.sha256, **cropped},
            view=view,
            preprocessing=self.config.evaluation.preprocessing,
            encoder=self._digests[encoder],
            tower=encoder,
        )

    def _region_inputs(self, image: Image, noun: str) -> dict[str, object]:
        """Everything that decides the subject's region."""
        return {
            "image": image.blob.sha256,
            "mask": image.mask.sha256 if image.mask else None,
            "detector": self._detector_digest,
            "noun": noun,
        }

    def _cache(self, kind: str) -> TensorCache:
        return TensorCache(kind, self.config.paths.work / "caches", self.store)

    @cached_property
    def _digests(self) -> dict[EncoderName, str]:
        rules = self.config.evaluation
        return {
            "clip": encoder_digest(rules.clip, rules.clip_revision),
            "identity": encoder_digest(rules.identity, rules.identity_revision),
        }

    @cached_property
    def _detector_digest(self) -> str | None:
        return detector_digest(self.config.evaluation.detector, self.config.vision)

    @cached_property
    def _clip(self) -> ImageEncoder:
        rules = self.config.evaluation
        return ImageEncoder(rules.clip, rules.clip_revision, rules.preprocessing)

    @cached_property
    def _identity(self) -> IdentityEncoder:
        rules = self.config.evaluation
        return load_identity_encoder(rules.identity, rules.identity_revision, rules.preprocessing)

    @cached_property
    def _detector(self) -> Detector | None:
        answers = StoredAnswers(self.store)
        return load_detector(self.config.evaluation.detector, self.config.vision, answers)


def embed_images(
    config: Config, store: Store, images: Sequence[Image], encoder: EncoderName
) -> Embeddings:
    """(images, d) unit-length rows of the whole images, by an encoder of the config's evaluation."""
    rules = config.evaluation.model_copy(update={"detector": DetectorOptions()})
    embedder = ImageEmbedder(config.model_copy(update={"evaluation": rules}), store)
    key: EmbeddingKey = (encoder, "whole")
    rows = embedder.embed(images, config.subject.class_noun, [key]).get(key)
    if rows is None:
        raise ValueError(f"the encoder {encoder} gave no embeddings of whole images")
    return rows


def _view(image: Pillow.Image, region: Region | None, view: View) -> Pillow.Image:
    return image if region is None or view == "whole" else crop(image, region)


def _packed(region: Region | None) -> Entry:
    """A region as tensors; a mask takes one bit per pixel."""
    if region is None:
        return {"box": torch.tensor(NO_BOX)}
    box = {"box": torch.tensor(region.box)}
    if region.mask is None:
        return box
    bits = torch.from_numpy(np.packbits(region.mask))
    return {**box, "mask": bits, "shape": torch.tensor(region.mask.shape)}


def _unpacked(entry: Entry) -> Region | None:
    left, top, right, bottom = entry["box"].tolist()
    if (left, top, right, bottom) == NO_BOX:
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


def photos_of_subject(store: Store, instance: ImageSet, subject: int = 0) -> StoredImages:
    """The photos of one subject, by its index in `Config.subjects`."""
    return StoredImages(store, images_of_subject(instance, subject))


def images_of_subject(instance: ImageSet, subject: int) -> tuple[Image, ...]:
    return tuple(image for image in instance.images if image.subject == subject)
