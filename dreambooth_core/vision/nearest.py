"""Exact nearest neighbours by usearch: cosines of unit vectors, differing bits of hashes."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dreambooth_core.vision.embeddings import Embeddings

SLACK = 32
"""Candidates beyond the wanted ones: usearch ranks by float32 distances, the result is ranked by
float64 cosines, so that rounding does not decide which of two nearly equal vectors is found."""

Keys = NDArray[np.uint64]


class Neighbour(NamedTuple):
    """A vector of the index."""

    key: int
    cosine: float
    """With the query, in [-1, 1]."""


class VectorIndex:
    """Unit vectors under keys of 64 bits, in float64."""

    def __init__(self, dimensions: int, data: bytes | None = None) -> None:
        """Empty, or from the bytes of `to_bytes`; raises `ValueError` for other bytes."""
        from usearch.index import Index

        try:
            found: Any = None if data is None else Index.restore(data)
        except RuntimeError as error:
            raise ValueError(f"not an index: {error}") from error
        if found is not None and found.ndim != dimensions:
            raise ValueError(f"an index of {found.ndim} dimensions, not {dimensions}")
        self._index: Any = found or Index(ndim=dimensions, metric="ip", dtype="f64")

    def __len__(self) -> int:
        return len(self._index)

    def missing(self, keys: Iterable[int]) -> list[int]:
        """Indices of the keys without a vector."""
        asked = _as_keys(keys)
        return [] if len(asked) == 0 else np.flatnonzero(~self._index.contains(asked)).tolist()

    def add(self, keys: Sequence[int], rows: Embeddings) -> None:
        """Add new keys with their unit vectors, (keys, dimensions)."""
        # one thread, so that equal calls build equal graphs
        self._index.add(_as_keys(keys), np.asarray(rows, dtype=np.float64), threads=1)

    def nearest(self, query: Embeddings, count: int, among: Iterable[int]) -> list[Neighbour]:
        """The `count` keys of `among` with the highest cosine, equal ones by key; exact.

        `query` is one unit vector. Raises `KeyError` for a key without a vector.
        """
        keys = np.unique(_as_keys(among))
        if self.missing(keys.tolist()):
            raise KeyError("a key has no vector in the index")
        if len(keys) == 0:
            return []
        rows = np.stack(self._index.get(keys))
        near = _nearest_rows(rows, query, count + SLACK)
        cosines = rows[near] @ np.asarray(query, dtype=np.float64)
        found = [Neighbour(int(key), float(c)) for key, c in zip(keys[near], cosines, strict=True)]
        return sorted(found, key=lambda one: (-one.cosine, one.key))[:count]

    def to_bytes(self) -> bytes:
        return bytes(self._index.save())


def nearest_hashes(
    hashes: NDArray[np.bool_], known: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """For each hash, (n, bits), the first nearest of `known`, (m, bits): its index and differing bits."""
    from usearch.index import MetricKind, search

    queries, dataset = np.packbits(hashes, axis=1), np.packbits(known, axis=1)
    found = search(dataset, queries, len(dataset), MetricKind.Hamming, exact=True, threads=1)
    keys = np.asarray(found.keys).reshape(len(queries), -1).astype(np.intp)
    bits = np.asarray(found.distances).reshape(len(queries), -1).astype(np.int64)
    least = bits.min(axis=1)
    return np.where(bits == least[:, None], keys, len(dataset)).min(axis=1), least


def _nearest_rows(rows: Embeddings, query: Embeddings, count: int) -> NDArray[np.intp]:
    from usearch.index import MetricKind, search

    wanted = min(count, len(rows))
    vector = np.asarray(query, dtype=np.float64)
    found = search(rows, vector, wanted, MetricKind.IP, exact=True, threads=1)
    return np.asarray(found.keys).astype(np.intp)


def _as_keys(keys: Iterable[int]) -> Keys:
    return np.fromiter(keys, dtype=np.uint64)
