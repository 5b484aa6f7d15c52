"""Embeddings: rows of unit length."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.float64]
"""Rows of unit length, one per image or text; a row of nan where the input is missing."""


def unit(rows: Any) -> Embeddings:
    """Rows scaled to length 1, as float64; a row of zeros stays one."""
    array = np.asarray(rows, dtype=np.float64)
    length = np.linalg.norm(array, axis=-1, keepdims=True)
    return np.asarray(array / np.maximum(length, 1e-12), dtype=np.float64)
