"""Detection of partial copies: crops of a photo, and overlapping windows of one photo.

Two steps on small grey images. Masked normalised correlation (Padfield 2012) of gradient fields at
every shift and several scales, plain and mirrored, gives candidates. Each is aligned to subpixel
precision by least squares over shift, scale, contrast and brightness (Lucas and Kanade 1981); the
score is the correlation of both gradient fields in the overlap, at 160 pixels per longer side. Fine
edges separate copies from other views of the same scene; `benchmarks/shifted_copies.py` prints the
scores of both on photos of real subjects.
"""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage

SIDE = 32
"""Longer side of a photo in the search, in pixels."""
FINE = 160
"""Longer side of a photo in the alignment, in pixels."""
SCALES = (1.0, 0.917, 0.841, 0.771, 0.707, 0.648, 0.595, 0.545)
"""Searched scales of one photo relative to the other, in both directions; alignment interpolates."""
OVERLAP = 0.25
"""Least overlap, as a share of the smaller photo's area."""
CANDIDATES = 3
PROMISING = 0.5
"""Score in the search from which a candidate is aligned; copies reach 0.7."""
COPY = 0.8
"""Score above which two photos are copies: at most 0.54 between the photos of ten real subjects,
above 0.9 for copies with 45 % cut off, recompressed as JPEG of quality 75."""
TEXTURED = 0.2
"""Least share of the overlap's tiles with texture."""
TILES = 6
"""The overlap is divided into TILES x TILES."""
TEXTURE = 1.0
"""Least mean squared compressed gradient of a tile with texture; a plain wall has less."""
ROUND = 0.1
"""Least ratio of the eigenvalues of the gradients' second moments: 0 for a single horizon, which
correlates with any other."""
NOISE = 4.0
"""Grey levels: larger gradients are compressed to their square root, so that one hard edge does not
dominate."""
LEVELS = ((3.0, 8), (1.2, 6))
"""Blur in pixels, and maximum alignment steps at that blur."""
LEAST = 24
"""Least side of an overlap in the alignment, in pixels."""

_GRID = 2 * SIDE

Grey = NDArray[np.float32]
Spectra = NDArray[np.complex64]


class Views(NamedTuple):
    """Precomputed representation of a photo for `shifted`."""

    spectra: tuple[Spectra, ...]
    """Per scale (3, grid, grid // 2 + 1): horizontal and vertical gradient, squared length."""
    mirrored: Spectra
    """The same for the mirrored photo at scale 1."""
    sizes: tuple[tuple[int, int], ...]
    """Height and width in pixels, per scale."""
    grey: Grey
    """(height, width), the longer one FINE."""


class Shift(NamedTuple):
    """Best match between parts of two photos."""

    score: float
    """Correlation of the aligned gradient fields in the overlap, -1 to 1."""
    mirrored: bool
    overlap: float
    """Overlap as a share of the smaller photo's area."""


class _Candidate(NamedTuple):
    rank: float
    score: float
    mirrored: bool
    warp: tuple[float, float, float]
    """Scale, down, right in fine pixels: first = scale * second + shift."""


NONE = Shift(0.0, mirrored=False, overlap=0.0)


def views(image: Image.Image) -> Views:
    """Precompute an RGB photo of any size for `shifted`."""
    fine = _resized(image.convert("L"), FINE)
    coarse = [_resized(fine, SIDE * scale) for scale in SCALES]
    mirrored = _resized(fine.transpose(Image.Transpose.FLIP_LEFT_RIGHT), SIDE)
    return Views(
        spectra=tuple(map(_spectra, coarse)),
        mirrored=_spectra(mirrored),
        sizes=tuple((one.height, one.width) for one in coarse),
        grey=np.asarray(fine, dtype=np.float32),
    )


def shifted(first: Views, second: Views, scales: int = len(SCALES)) -> Shift:
    """The best match of parts of two photos, plain or mirrored, over the first `scales` of SCALES.

    Score 0 without a promising candidate, or with too little texture in the overlap.
    """
    directions = [(first, second, 0), (second, first, 1)]
    found = [
        (candidate, one, other)
        for one, other, least in directions
        for candidate in _search(one, other, range(least, scales))
    ]
    found.sort(key=lambda entry: entry[0].rank, reverse=True)
    matches = [
        _match(one.grey[:, ::-1] if candidate.mirrored else one.grey, other.grey, candidate)
        for candidate, one, other in found[:CANDIDATES]
        if candidate.score > PROMISING
    ]
    return max(matches, key=lambda match: match.score, default=NONE)


def _resized(grey: Image.Image, side: float) -> Image.Image:
    scale = side / max(grey.size)
    size = tuple(max(round(scale * edge), 8) for edge in grey.size)
    return grey.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def _gradients(grey: Grey) -> tuple[Grey, Grey]:
    """Horizontal and vertical gradient, compressed; zero at the border."""
    across, down = np.zeros_like(grey), np.zeros_like(grey)
    across[1:-1, 1:-1] = grey[1:-1, 2:] - grey[1:-1, :-2]
    down[1:-1, 1:-1] = grey[2:, 1:-1] - grey[:-2, 1:-1]
    weight = np.sqrt(np.hypot(across, down) + NOISE)
    return np.divide(across, weight, dtype=np.float32), np.divide(down, weight, dtype=np.float32)


def _spectra(grey: Image.Image) -> Spectra:
    across, down = _gradients(np.asarray(grey, dtype=np.float32))
    return _transformed(np.stack([across, down, across**2 + down**2]))


def _transformed(stack: Grey) -> Spectra:
    return np.asarray(fft.rfft2(stack, (_GRID, _GRID)), dtype=np.complex64)


def _correlation(product: Spectra) -> Grey:
    """Correlation at every shift, from a product of spectra."""
    return np.asarray(fft.irfft2(product, (_GRID, _GRID)), dtype=np.float32)


@functools.lru_cache(maxsize=1024)
def _mask(size: tuple[int, int]) -> Spectra:
    mask = np.zeros(size, dtype=np.float32)
    mask[1:-1, 1:-1] = 1
    return _transformed(mask)


@functools.lru_cache(maxsize=1024)
def _shared(size: tuple[int, int], other: tuple[int, int]) -> Grey:
    """Overlap at every shift, as a share of the smaller area."""
    smaller = min(size[0] * size[1], other[0] * other[1])
    return _correlation(_mask(size) * _mask(other).conj() / np.float32(smaller))


def _search(whole: Views, other: Views, scales: range) -> list[_Candidate]:
    """The best shift of the other photo at each scale against the whole one, plain and mirrored."""
    return [
        _best_shift(spectra, whole.sizes[0], other, view, mirrored)
        for view in scales
        for spectra, mirrored in ((whole.spectra[0], False), (whole.mirrored, True))
    ]


def _best_shift(
    whole: Spectra, size: tuple[int, int], other: Views, view: int, mirrored: bool
) -> _Candidate:
    theirs, their_size = other.spectra[view].conj(), other.sizes[view]
    mask, their_mask = _mask(size), _mask(their_size).conj()
    product = _correlation(whole[0] * theirs[0] + whole[1] * theirs[1])
    energies = np.maximum(_correlation(whole[2] * their_mask), 1) * np.maximum(
        _correlation(mask * theirs[2]), 1
    )
    shared = _shared(size, their_size)
    scores = np.where(shared >= OVERLAP, product / np.sqrt(energies), -1)
    # small overlaps reach high scores by chance
    ranks = scores * np.clip(shared, 0, 1) ** 0.25
    best = int(ranks.argmax())
    down, right = (x - _GRID if x > SIDE else x for x in divmod(best, _GRID))
    fine = FINE / SIDE
    return _Candidate(
        rank=float(ranks.flat[best]),
        score=float(scores.flat[best]),
        mirrored=mirrored,
        warp=(SCALES[view], down * fine, right * fine),
    )


class _Overlap(NamedTuple):
    """The overlapping parts of both photos, on the first one's pixel grid."""

    first: Grey
    second: Grey
    rows: Grey
    """Row coordinate in the second photo, per row of the overlap."""
    columns: Grey


def _overlap(first: Grey, second: Grey, warp: NDArray[np.float64]) -> _Overlap | None:
    """None for an overlap of less than LEAST pixels."""
    scale, *shift = (float(x) for x in warp)
    spans, coordinates = [], []
    for axis in (0, 1):
        start = max(0, int(np.ceil(shift[axis])))
        last = int(np.floor(shift[axis] + scale * (second.shape[axis] - 1)))
        stop = min(first.shape[axis], last + 1)
        if stop - start < LEAST:
            return None
        spans.append(slice(start, stop))
        coordinates.append(((np.arange(start, stop) - shift[axis]) / scale).astype(np.float32))
    rows, columns = (_interpolation(second.shape[axis], coordinates[axis]) for axis in (0, 1))
    moved: Grey = np.asarray(rows @ second @ columns.T, dtype=np.float32)
    return _Overlap(first[spans[0], spans[1]], moved, coordinates[0], coordinates[1])


def _interpolation(length: int, coordinates: Grey) -> Grey:
    """(coordinates, length): matrix of linear interpolation between the pixels of a row."""
    before = np.clip(np.floor(coordinates).astype(int), 0, length - 2)
    share = np.clip(coordinates - before, 0, 1)
    matrix = np.zeros((len(coordinates), length), dtype=np.float32)
    row = np.arange(len(coordinates))
    matrix[row, before], matrix[row, before + 1] = 1 - share, share
    return matrix


def _aligned(
    first: Grey, second: Grey, warp: NDArray[np.float64], steps: int
) -> NDArray[np.float64] | None:
    """The warp after at most `steps` steps; None when the overlap is lost."""
    for _ in range(steps):
        both = _overlap(first, second, warp)
        if both is None:
            return None
        step = _step(both)
        warp = warp + step
        if np.abs(step[1:]).max() < 0.03:
            break
    return warp


def _step(both: _Overlap) -> NDArray[np.float64]:
    """Change of the warp by one linear least squares with free contrast and brightness."""
    spread = both.second - both.second.mean()
    contrast = float((spread * both.first).sum() / max(float((spread**2).sum()), 1e-3))
    contrast = contrast if contrast > 0.2 else 1.0
    down, right = np.gradient(both.second)
    columns = [
        -contrast * (down * both.rows[:, None] + right * both.columns),
        -contrast * down,
        -contrast * right,
        both.second,
        np.ones_like(both.second),
    ]
    matrix = np.stack(columns, axis=-1).reshape(-1, len(columns))
    squares = (matrix.T @ matrix).astype(np.float64)
    damped = squares + 1e-4 * np.diag(np.diag(squares)) + 1e-6 * np.eye(len(columns))
    solved = np.linalg.solve(damped, matrix.T @ both.first.ravel())
    return np.clip(solved[:3], (-0.05, -3, -3), (0.05, 3, 3))


def _match(first: Grey, second: Grey, candidate: _Candidate) -> Shift:
    warp: NDArray[np.float64] | None = np.array(candidate.warp)
    for blur, steps in LEVELS:
        if warp is not None and SCALES[-1] / 1.1 < warp[0] < 1.1 / SCALES[-1]:
            warp = _aligned(*_blurred(blur, first, second), warp, steps)
    both = None if warp is None else _overlap(*_blurred(0.8, first, second), warp)
    if both is None or warp is None:
        return NONE
    overlap = both.first.size / min(first.size, second.size * float(warp[0]) ** 2)
    mine, theirs = (np.stack(_gradients(grey)) for grey in (both.first, both.second))
    if overlap < OVERLAP or not (_is_textured(mine) and _is_textured(theirs)):
        return NONE
    score = float((mine * theirs).sum() / np.sqrt((mine**2).sum() * (theirs**2).sum()))
    return Shift(score, candidate.mirrored, min(overlap, 1.0))


def _blurred(blur: float, *greys: Grey) -> tuple[Grey, Grey]:
    first, second = (ndimage.gaussian_filter(grey, blur) for grey in greys)
    return first, second


def _is_textured(gradients: Grey) -> bool:
    """Whether an overlap has texture in enough tiles and both directions."""
    energy = (gradients**2).sum(0)
    tiles = [
        float(tile.mean())
        for row in np.array_split(energy, TILES)
        for tile in np.array_split(row, TILES, axis=1)
    ]
    across, down = (float((one**2).sum()) for one in gradients)
    both = float((gradients[0] * gradients[1]).sum())
    least, most = np.linalg.eigvalsh([[across, both], [both, down]])
    textured = sum(tile > TEXTURE for tile in tiles) >= TEXTURED * len(tiles)
    return bool(textured and least > ROUND * most)
