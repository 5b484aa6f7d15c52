"""Statistics of scores: confidence intervals, paired comparisons, smallest detectable effect.

The sampling unit is the prompt, with the mean of its seeds, since images of one prompt are
correlated; each class image is a unit of its own.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreambooth_core.randomness import seed_for
from dreambooth_core.storage.blobs import get_blob
from dreambooth_core.storage.records import Comparison, Estimate, ImageScores, Scores, ScoreTable
from dreambooth_core.storage.stores import Store

Values = NDArray[np.float64]
ImageKey = tuple[str, str, int]
"""Kind, prompt and seed: identifies an image of a plan."""

RESAMPLES = 5000
EXACT_SIGNS = 12
"""Up to this many units all 2^n sign patterns are used; beyond, `RESAMPLES` random ones."""
POWER = 0.8


def estimate(
    metric: str,
    rows: Sequence[ImageScores],
    level: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Mean of `metric` over the units of `rows`, with its interval of `level` (see `interval`).

    The interval is clipped to `bounds`, the metric's range, which does not reduce its coverage.
    Rows without the metric are skipped. Raises `ValueError` when no row has it, or when both prompts
    and class images have it.
    """
    values = _unit_means(_values(metric, rows))
    low, high = interval(values, level)
    if low is not None and high is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate(value=float(values.mean()), low=low, high=high)


def compare(
    metric: str,
    challenger: Sequence[ImageScores],
    champion: Sequence[ImageScores],
    level: float,
    higher_is_better: bool = True,
) -> Comparison:
    """`metric` of a challenger against a champion's, paired by image of the same plan.

    Pairs count when both images have the metric. Raises `ValueError` for different plans, and
    without any pair.
    """
    if {image_key(row) for row in challenger} != {image_key(row) for row in champion}:
        raise ValueError("only images of the same prompts and seeds can be compared")
    ours, theirs = _values(metric, challenger), _values(metric, champion)
    both = sorted(ours.keys() & theirs.keys())
    gains = {key: ours[key] - theirs[key] for key in both}
    units = _unit_means(gains)
    low, high = interval(units, level)
    sign = 1 if higher_is_better else -1
    wins = [(np.sign(sign * gain) + 1) / 2 for gain in gains.values()]
    return Comparison(
        metric=metric,
        higher_is_better=higher_is_better,
        challenger=float(_unit_means({key: ours[key] for key in both}).mean()),
        champion=float(_unit_means({key: theirs[key] for key in both}).mean()),
        difference=float(units.mean()),
        low=low,
        high=high,
        level=level,
        win_rate=float(np.mean(wins)),
        p=sign_flip_p(units),
        smallest_effect=smallest_effect(units, level),
        prompts=len({prompt for _, prompt, _ in both}),
        images=len(both),
    )


def of_base(rows: Iterable[ImageScores]) -> tuple[ImageScores, ...]:
    """The base model's rows: `base_scores` as `scores`."""
    return tuple(row.model_copy(update={"scores": row.base_scores}) for row in rows)


def image_key(row: ImageScores) -> ImageKey:
    return row.kind, row.prompt, row.seed


def shared_metrics(ours: Iterable[ImageScores], theirs: Iterable[ImageScores]) -> set[str]:
    """Metrics that at least one image has on both sides."""
    found = {image_key(row): row.scores.keys() for row in theirs}
    return {name for row in ours for name in row.scores.keys() & found.get(image_key(row), set())}


def interval(values: Values, level: float) -> tuple[float, float] | tuple[None, None]:
    """Ends of the mean's two-sided confidence interval of `level`; None for a single value.

    At each end the wider of two: the expanded percentile bootstrap (Hesterberg 2015, "What Teachers
    Should Know About the Bootstrap", The American Statistician 69:371), which follows the values'
    skewness, and Student's t, since resamples of few values underestimate their spread.
    """
    from scipy.special import ndtr, stdtrit

    count = len(values)
    if count < 2:
        return None, None
    quantile = float(stdtrit(count - 1, (1 + level) / 2))
    mean, error = float(values.mean()), float(values.std(ddof=1)) / np.sqrt(count)
    tail = float(ndtr(-quantile * np.sqrt(count / (count - 1))))
    low, high = np.quantile(_shares(count) @ values, (tail, 1 - tail))
    return min(float(low), mean - quantile * error), max(float(high), mean + quantile * error)


def wilson(count: int, total: int, level: float) -> tuple[float, float]:
    """Ends of Wilson's (1927) two-sided interval of a share `count` of `total` > 0, in [0, 1].

    Takes the cases as independent.
    """
    from scipy.special import ndtri

    z, share = float(ndtri((1 + level) / 2)), count / total
    centre = share + z**2 / (2 * total)
    reach = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    scale = 1 + z**2 / total
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def sign_flip_p(values: Values) -> float:
    """Two-sided p-value, in (0, 1], of the sign-flip permutation test of a mean of 0.

    Exact for up to `EXACT_SIGNS` values; beyond, over random signs, including the observed ones
    (Phipson & Smyth 2010, "Permutation P-values Should Never Be Zero").
    """
    sums = np.abs(_signs(len(values)) @ values)
    # tolerance: the order of a sum decides its last bits
    as_far = sums >= abs(values.sum()) - 1e-12 * np.abs(values).sum()
    return float(as_far.mean())


def smallest_effect(values: Values, level: float) -> float | None:
    """Smallest true mean detected with a power of 0.8 at this spread and sample size.

    Detected: 0 is outside Student's interval of `level`; hence the shift of the noncentral t
    distribution with that power. None for a single value.
    """
    count = len(values)
    if count < 2:
        return None
    return float(_detectable_errors(count, level) * values.std(ddof=1) / np.sqrt(count))


def _values(metric: str, rows: Iterable[ImageScores]) -> dict[ImageKey, float]:
    return {image_key(row): row.scores[metric] for row in rows if metric in row.scores}


def _unit_means(values: Mapping[ImageKey, float]) -> Values:
    """One mean per unit, in the order of prompts, independent of the images' order."""
    if not values:
        raise ValueError("no image has the metric")
    units: defaultdict[tuple[Any, ...], list[float]] = defaultdict(list)
    for (kind, prompt, seed), value in sorted(values.items()):
        units[(kind, prompt, seed) if kind == "class" else (prompt,)].append(value)
    if len({len(unit) for unit in units}) > 1:
        raise ValueError("a metric is of prompts or of class images, not of both")
    return np.array([np.mean(unit) for unit in units.values()])


@cache
def _detectable_errors(count: int, level: float) -> float:
    """Smallest detectable mean of `count` values, in standard errors."""
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    bound = t.ppf((1 + level) / 2, count - 1)
    return float(brentq(lambda shift: nct.sf(bound, count - 1, shift) - POWER, 0, 10 * bound))


@cache
def _shares(count: int) -> Values:
    """(resamples, count): weight of each value in a resample's mean."""
    draws = np.random.default_rng(seed_for(0, "bootstrap", count))
    return draws.multinomial(count, [1 / count] * count, RESAMPLES) / count


@cache
def _signs(count: int) -> Values:
    """(patterns, count) of +1 and -1, the first row all +1."""
    if count <= EXACT_SIGNS:
        return np.array(list(product((1.0, -1.0), repeat=count)))
    draws = np.random.default_rng(seed_for(0, "sign flips", count))
    signs = draws.choice((-1.0, 1.0), (RESAMPLES, count))
    return np.vstack([np.ones(count), signs])


def rows_of(store: Store, scores: Scores) -> tuple[ImageScores, ...]:
    """Every image's scores: prompts x seeds, then class images; empty for scores without a table."""
    if scores.table is None:
        return ()
    return ScoreTable.model_validate_json(get_blob(store, scores.table)).rows
