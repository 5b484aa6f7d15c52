"""Exact nearest neighbours, compared with brute force in NumPy."""

import numpy as np
import pytest

from dreambooth_core.vision.embeddings import unit
from dreambooth_core.vision.nearest import VectorIndex, nearest_hashes

DRAWS = np.random.default_rng(0)
ROWS = unit(DRAWS.normal(size=(200, 16)))
KEYS = [int(key) for key in DRAWS.integers(0, 2**64, 200, dtype=np.uint64)]


def index_of(count: int) -> VectorIndex:
    index = VectorIndex(16)
    index.add(KEYS[:count], ROWS[:count])
    return index


def brute_force(query, among, count) -> list[tuple[float, int]]:
    found = sorted((-float(ROWS[n] @ query), KEYS[n]) for n in among)
    return [(-cosine, key) for cosine, key in found[:count]]


@pytest.mark.parametrize("among", [range(200), range(0, 200, 7), [3], []])
def test_the_nearest_vectors_are_those_of_brute_force(among):
    index = index_of(200)
    for query in unit(DRAWS.normal(size=(20, 16))):
        found = index.nearest(query, 10, [KEYS[n] for n in among])
        expected = brute_force(query, among, 10)
        assert [one.key for one in found] == [key for _, key in expected]
        np.testing.assert_allclose([one.cosine for one in found], [c for c, _ in expected], 1e-12)


def test_vectors_closer_than_float32_are_ranked_exactly_and_equal_ones_by_key():
    rows = unit(np.array([[1.0, 3e-9 * n, 0] for n in range(40)] + [[1.0, 0, 0]]))
    index = VectorIndex(3)
    index.add([*range(100, 140), 7], rows)
    found = index.nearest(unit(np.array([1e-9, 1.0, 0])), 3, [*range(100, 140), 7])
    assert [one.key for one in found] == [139, 138, 137]
    found = index.nearest(np.array([1.0, 0, 0]), 41, [7, 100])
    assert [one.key for one in found] == [7, 100]


def test_an_index_survives_as_bytes_and_knows_what_it_lacks():
    again = VectorIndex(16, index_of(50).to_bytes())
    assert len(again) == 50
    assert again.missing(KEYS[48:53]) == [2, 3, 4]
    query = ROWS[20]
    assert again.nearest(query, 5, KEYS[:50]) == index_of(50).nearest(query, 5, KEYS[:50])
    with pytest.raises(KeyError):
        again.nearest(query, 5, KEYS)


@pytest.mark.parametrize("data", [b"", b"x" * 500, index_of(50).to_bytes()[:-64]])
def test_damaged_bytes_are_refused(data):
    with pytest.raises(ValueError, match=r"index|End of file"):
        VectorIndex(16, data)


def test_an_index_of_other_dimensions_is_refused():
    with pytest.raises(ValueError, match="16 dimensions, not 8"):
        VectorIndex(8, index_of(50).to_bytes())


def test_hashes_are_compared_by_differing_bits_and_the_first_of_equals_is_found():
    known = DRAWS.integers(0, 2, (9, 64)).astype(np.bool_)
    known[5] = known[2]
    queries = np.concatenate([known[[5, 8]], DRAWS.integers(0, 2, (30, 64)).astype(np.bool_)])
    queries[1, :3] ^= True
    indices, bits = nearest_hashes(queries, known)
    differing = (queries[:, None] != known[None]).sum(axis=2)
    np.testing.assert_array_equal(indices, differing.argmin(axis=1))
    np.testing.assert_array_equal(bits, differing.min(axis=1))
    assert (indices[0], bits[0], indices[1], bits[1]) == (2, 0, 8, 3)
