"""The embedding index of a store: CLIP's vectors of generated images and training photos.

indexes/<digest>.json    the index of one encoder and preprocessing: a record that names its blob

The blob is written before the record, which is replaced by compare-and-swap: an interrupted update
leaves the previous index. A missing or damaged blob is rebuilt from the cached embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dreambooth_core.config import Config
from dreambooth_core.digests import digest_json
from dreambooth_core.errors import NotFound, StorageError
from dreambooth_core.metrics.embeddings import ImageEmbedder, embed_images
from dreambooth_core.storage.blobs import get_blob, put_blob
from dreambooth_core.storage.records import Blob, Image, Record
from dreambooth_core.storage.stores import Store
from dreambooth_core.vision.embeddings import Embeddings
from dreambooth_core.vision.nearest import VectorIndex

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FORMAT = 1
"""Part of the record's key; incremented when keys or vectors of the index change."""


class StoredIndex(Record):
    """An index in the store."""

    blob: Blob
    """usearch's file."""
    dimensions: int
    images: int
    """Number of vectors."""


class Ranked(Record):
    """An image with its similarity to a query."""

    index: int
    """Index in the searched images."""
    cosine: float


@dataclass(frozen=True)
class EmbeddingIndex:
    """Nearest images by CLIP's embeddings of whole images."""

    config: Config
    """Encoder and preprocessing are those of `evaluation`."""
    store: Store

    def nearest(self, query: Embeddings, images: Sequence[Image], count: int) -> list[Ranked]:
        """The nearest of some images of the store, best first, equal ones by digest.

        `query` is one unit vector. Only images that the index lacks are embedded, and the index is
        stored with them. Raises `ModelError` if an encoder is needed and missing.
        """
        keys = [_key(image) for image in images]
        index_of = {key: index for index, key in reversed([*enumerate(keys)])}
        found = self._with(images, keys, query.shape[-1]).nearest(query, count, keys)
        return [Ranked(index=index_of[one.key], cosine=one.cosine) for one in found]

    def of_text(self, text: str) -> Embeddings:
        return np.asarray(self._embedder.embed_texts([text])[0])

    def of_pictures(self, pictures: "Sequence[Picture]") -> Embeddings:
        return self._embedder.embed_pictures(pictures)

    def _with(self, images: Sequence[Image], keys: Sequence[int], dimensions: int) -> VectorIndex:
        """The stored index, extended by the images it lacks."""
        stored, tag = self._stored()
        index = self._read(stored, dimensions)
        missing = sorted({keys[n]: n for n in index.missing(keys)}.values(), key=keys.__getitem__)
        if missing:
            rows = embed_images(self.config, self.store, [images[n] for n in missing], "clip")
            index.add([keys[n] for n in missing], rows)
            self._keep(index, dimensions, tag)
        return index

    def _read(self, stored: StoredIndex | None, dimensions: int) -> VectorIndex:
        if stored is None:
            return VectorIndex(dimensions)
        try:
            return VectorIndex(dimensions, get_blob(self.store, stored.blob))
        except (StorageError, ValueError):  # deleted or damaged
            return VectorIndex(dimensions)

    def _stored(self) -> tuple[StoredIndex | None, str | None]:
        """The record and its version tag; an unreadable record counts as missing."""
        try:
            data, tag = self.store.get_tagged(self._record_key)
        except NotFound:
            return None, None
        try:
            return StoredIndex.model_validate_json(data), tag
        except ValueError:
            return None, tag

    def _keep(self, index: VectorIndex, dimensions: int, tag: str | None) -> None:
        """Store the index; of concurrent updates the first is kept, later searches add the rest."""
        blob = put_blob(self.store, index.to_bytes())
        record = StoredIndex(blob=blob, dimensions=dimensions, images=len(index))
        self.store.put_if(self._record_key, record.model_dump_json().encode(), tag)

    @property
    def _record_key(self) -> str:
        rules = self.config.evaluation
        inputs = [FORMAT, self._embedder.digest_of("clip"), rules.preprocessing, "whole"]
        return f"indexes/{digest_json(inputs)}.json"

    @cached_property
    def _embedder(self) -> ImageEmbedder:
        return ImageEmbedder(self.config, self.store)


def _key(image: Image) -> int:
    """The first 64 bits of the file's SHA-256; two of a million images share them with p < 1e-7."""
    return int(image.blob.sha256[:16], 16)
