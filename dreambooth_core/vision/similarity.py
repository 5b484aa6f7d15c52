"""Similarity of two photos, sharpness of one, and a perceptual hash.

Thumbnails of two views of one subject correlate highly (up to 0.94 in real sets), since large shapes
agree. `alike` correlates gradient fields instead, over small shifts and crops, since only a copy keeps
its edges in place: at most 0.84 between the photos of ten real subjects, above 0.95 for copies.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
"""Side of a thumbnail in pixels."""
SOURCE = 4 * SIDE
"""Side of the reduced photo from which thumbnails are made."""
CROPS = (31, 30, 29, 28)
"""Recognised crops, as sides of a thumbnail of SIDE: along one axis or both."""
OVERLAP = 0.75
"""Least overlap of a match, as a share of a thumbnail's area."""
STRUCTURE = 0.5
"""Least share of the gradient energy in the overlap; the seam of a rolled image may hold much of it."""
PROMISING = 0.4
"""Score of two whole thumbnails from which crops are tried; copies cropped to 90 % reach 0.54."""
CUT = 0.03
"""Least share of the gradient energy outside a crop; a subject merely enlarged on a plain background
has none."""
TILES = 4
FINE = 4
"""Steps per pixel of the final alignment."""

_GRID = 40
"""Side of the padded transforms: OVERLAP allows shifts of up to 8 pixels, which must not wrap."""


Transforms = NDArray[np.complex64]


class Match(NamedTuple):
    """Best match of two photos."""

    score: float
    """Correlation of the aligned gradient fields, -1 to 1; 1 for equal images."""
    mirrored: bool
    moved: bool
    """Whether the best alignment is a shift or a crop."""


class Fingerprint(NamedTuple):
    """Fourier transforms of a photo's thumbnails, whole and scaled down."""

    views: Transforms
    """(views, grid, grid): transforms of the gradient fields gx + i gy."""
    energies: Transforms
    """(views, grid, grid): transforms of their squared lengths."""
    mirror: Transforms
    """(2, grid, grid): field and squared length of the mirrored whole."""
    totals: NDArray[np.float32]
    """(views,): each view's gradient energy."""


def fingerprint(image: Image.Image) -> Fingerprint:
    """Precompute an RGB photo of any size for `alike`."""
    source = image.convert("L").resize((SOURCE, SOURCE), Image.Resampling.BOX)
    fields = np.stack([_field(source, *size) for size in _VIEWS])
    mirrored = _field(source.transpose(Image.Transpose.FLIP_LEFT_RIGHT), SIDE, SIDE)
    return Fingerprint(
        views=_transform(fields),
        energies=_transform(np.abs(fields) ** 2),
        mirror=_transform(np.stack([mirrored, np.abs(mirrored) ** 2])),
        totals=(np.abs(fields) ** 2).sum((1, 2)).astype(np.float32),
    )


def alike(first: Fingerprint, second: Fingerprint) -> Match:
    """The best match over mirroring, shifts up to a quarter and crops down to 88 %."""
    whole = _matches(first, second, slice(0, 1))
    best = max(whole, key=_score)
    if best.score < PROMISING:
        return best
    return max(*whole, *_matches(first, second, slice(1, None)), key=_score)


def sharpness(image: Image.Image, side: int) -> float:
    """Mean variance of the Laplacian of the sharpest 4 of 16 tiles, at `side` x `side` grey pixels.

    Meaningful only relative to other photos of the set, since plain scenes have low values. Tiles
    keep a blurred background from lowering the value of a sharp subject.
    """
    grey = np.asarray(
        image.convert("L").resize((side, side), Image.Resampling.LANCZOS), dtype=np.float32
    )
    laplacian = (
        grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    )
    tiles = [
        float(tile.var())
        for row in np.array_split(laplacian, TILES)
        for tile in np.array_split(row, TILES, axis=1)
    ]
    return float(np.mean(sorted(tiles)[-TILES:]))


_VIEWS = (
    (SIDE, SIDE),
    *((side, side) for side in CROPS),
    *((side, SIDE) for side in CROPS),
    *((SIDE, side) for side in CROPS),
)
"""Width and height of the thumbnails, the whole photo first."""


def _field(source: Image.Image, width: int, height: int) -> Transforms:
    """Gradient field of the photo at a size, complex (SIDE, SIDE), zero outside."""
    small = np.asarray(source.resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32)
    field = np.zeros((SIDE, SIDE), dtype=np.complex64)
    inside = field[1 : height - 1, 1 : width - 1]
    inside += small[1:-1, 2:] - small[1:-1, :-2]
    inside += 1j * (small[2:, 1:-1] - small[:-2, 1:-1])
    return field


def _mask(width: int, height: int) -> NDArray[np.float32]:
    mask = np.zeros((SIDE, SIDE), dtype=np.float32)
    mask[1 : height - 1, 1 : width - 1] = 1
    return mask


def _transform(stack: NDArray[np.generic]) -> Transforms:
    return np.fft.fft2(stack, (_GRID, _GRID)).astype(np.complex64)


def _correlate(a: Transforms, b: Transforms) -> NDArray[np.float32]:
    """Cross-correlation at every shift, from transforms."""
    return np.fft.ifft2(a * b.conj()).real.astype(np.float32)


_MASKS = _transform(np.stack([_mask(*size) for size in _VIEWS]))
_AREAS = np.stack([_mask(*size) for size in _VIEWS]).sum((1, 2))
_SHARED = _correlate(_MASKS[:1], _MASKS)
"""Overlapping pixels for every scale and shift."""
_ENOUGH = OVERLAP * _AREAS[:, None, None] <= _SHARED


def _matches(first: Fingerprint, second: Fingerprint, views: slice) -> list[Match]:
    """Matches of either whole photo, plain and mirrored, with thumbnails of the other."""
    found = []
    for one, other in ((first, second), (second, first)):
        plain = np.stack([one.views[0], one.energies[0]])
        found.append(_best(plain, one.totals[0], other, views))
        mirrored = _best(one.mirror, one.totals[0], other, views)
        found.append(mirrored._replace(mirrored=True))
    return found


def _score(match: Match) -> float:
    return match.score


def _best(whole: Transforms, total: float, other: Fingerprint, views: slice) -> Match:
    """Maximum of the masked normalised correlation (Padfield 2012) of a whole with some views."""
    totals = other.totals[views, None, None]
    product = _correlate(whole[:1], other.views[views])
    ours = _correlate(whole[1:], _MASKS[views])
    theirs = _correlate(_MASKS[:1], other.energies[views])
    structured = (ours >= max(STRUCTURE * total, 1)) & (theirs >= np.maximum(STRUCTURE * totals, 1))
    cropped = views.start == 0 or ours <= (1 - CUT) * total
    valid = _ENOUGH[views] & structured & cropped
    if not valid.any():
        return Match(0.0, mirrored=False, moved=False)
    scores = np.where(valid, product / np.sqrt(np.maximum(ours * theirs, 1)), -1)
    view, down, right = (int(i) for i in np.unravel_index(int(scores.argmax()), scores.shape))
    energy = float(ours[view, down, right] * theirs[view, down, right])
    crossed = whole[0] * other.views[views][view].conj()
    moved = views.start > 0 or down > 0 or right > 0
    return Match(_peak(crossed, energy, down, right), mirrored=False, moved=moved)


def _peak(product: Transforms, energy: float, down: int, right: int) -> float:
    """The subpixel maximum, by Fourier interpolation of the correlation around a pixel."""
    fine = np.arange(-FINE, FINE + 1) / FINE
    frequencies = np.fft.fftfreq(_GRID)
    rows = np.exp(2j * np.pi * np.outer(down + fine, frequencies))
    columns = np.exp(2j * np.pi * np.outer(frequencies, right + fine))
    around = (rows @ product @ columns).real / _GRID**2
    return min(float(around.max()) / float(np.sqrt(energy)), 1.0)


def difference_hash(image: Image.Image) -> NDArray[np.bool_]:
    """dHash of Krawetz (2013, "Kind of Like That"), 64 bits; copies differ in few.

    Each bit: whether a cell of an 8 x 9 grid is darker than its right neighbour.
    """
    cells = image.convert("L").resize((9, 8), Image.Resampling.LANCZOS)
    grey = np.asarray(cells, dtype=np.int64)
    return np.asarray(grey[:, 1:] > grey[:, :-1]).reshape(-1)
