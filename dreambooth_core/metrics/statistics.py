"""What a mean over prompts and seeds is worth: intervals, paired comparisons, the smallest effect.

The seeds of a prompt are averaged and the prompts are the sample, since images of one prompt are
alike; a class image, which shares its prompt with all others, is a unit of its own.
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
Place = tuple[str, str, int]
"""Kind, prompt and seed: which picture of a plan an image is."""

RESAMPLES = 5000
EXACT_SIGNS = 12
"""Up to so many units all signs are flipped in all ways, 4,096 of them; beyond, `RESAMPLES` are drawn."""
POWER = 0.8


def estimate(
    metric: str,
    rows: Sequence[ImageScores],
    level: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Mean of `metric` over the units of `rows`, with its interval of `level` (see `interval`).

    `bounds` are what no mean can leave: an interval ends there, which takes no coverage from it.
    Rows without the metric are passed over. Raises `ValueError` when none has it, or when prompts
    and class images both do: they are no common sample.
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
    """`metric` of a challenger against a champion's, image by image of the same plan.

    A picture counts when both images have the metric. Raises `ValueError` for different plans, and
    when no picture counts.
    """
    if {place(row) for row in challenger} != {place(row) for row in champion}:
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
    """The untouched base's rows: `base_scores` in the place of `scores`."""
    return tuple(row.model_copy(update={"scores": row.base_scores}) for row in rows)


def place(row: ImageScores) -> Place:
    return row.kind, row.prompt, row.seed


def shared_metrics(ours: Iterable[ImageScores], theirs: Iterable[ImageScores]) -> set[str]:
    """What can be compared: the metrics that at least one picture has on both sides."""
    found = {place(row): row.scores.keys() for row in theirs}
    return {name for row in ours for name in row.scores.keys() & found.get(place(row), set())}


def interval(values: Values, level: float) -> tuple[float, float] | tuple[None, None]:
    """Ends of the mean's two-sided confidence interval of `level`; None for a single value.

    The wider one, at each end, of two: the expanded percentile bootstrap (Hesterberg 2015, "What
    Teachers Should Know About the Bootstrap", The American Statistician 69:371), which
    follows the values' skewness, and Student's t, which knows that few values seldom show their
    whole spread: a resample of five prompts never leaves what was seen.
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


def sign_flip_p(values: Values) -> float:
    """Two-sided p, in (0, 1], of a mean as far from 0 as this, were each sign a coin's toss.

    Exact for up to `EXACT_SIGNS` values; beyond, over drawn signs, with the values' own among them
    (Phipson & Smyth 2010, "Permutation P-values Should Never Be Zero").
    """
    sums = np.abs(_signs(len(values)) @ values)
    # the same sum in another order may differ in its last bits
    as_far = sums >= abs(values.sum()) - 1e-12 * np.abs(values).sum()
    return float(as_far.mean())


def smallest_effect(values: Values, level: float) -> float | None:
    """The true mean that values spread like these would show in four of five samples of their size.

    Shown is what Student's interval of `level` has on the far side of 0, so this is the shift of
    the noncentral t distribution that has this power; None for a single value.
    """
    count = len(values)
    if count < 2:
        return None
    return float(_errors_to_see(count, level) * values.std(ddof=1) / np.sqrt(count))


def _values(metric: str, rows: Iterable[ImageScores]) -> dict[Place, float]:
    return {place(row): row.scores[metric] for row in rows if metric in row.scores}


def _unit_means(values: Mapping[Place, float]) -> Values:
    """One mean per unit, in the units' own order, whatever order the images came in."""
    if not values:
        raise ValueError("no image has the metric")
    units: defaultdict[tuple[Any, ...], list[float]] = defaultdict(list)
    for (kind, prompt, seed), value in sorted(values.items()):
        units[(kind, prompt, seed) if kind == "class" else (prompt,)].append(value)
    if len({len(unit) for unit in units}) > 1:
        raise ValueError("a metric is of prompts or of class images, not of both")
    return np.array([np.mean(unit) for unit in units.values()])


@cache
def _errors_to_see(count: int, level: float) -> float:
    """How many standard errors a mean of `count` values must be away from 0 to be seen."""
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    seen = t.ppf((1 + level) / 2, count - 1)
    return float(brentq(lambda shift: nct.sf(seen, count - 1, shift) - POWER, 0, 10 * seen))


@cache
def _shares(count: int) -> Values:
    """(resamples, count): how much of a resample's mean each value makes up."""
    draws = np.random.default_rng(seed_for(0, "bootstrap", count))
    return draws.multinomial(count, [1 / count] * count, RESAMPLES) / count


@cache
def _signs(count: int) -> Values:
    """(ways, count) of +1 and -1, the first row all +1."""
    if count <= EXACT_SIGNS:
        return np.array(list(product((1.0, -1.0), repeat=count)))
    draws = np.random.default_rng(seed_for(0, "sign flips", count))
    signs = draws.choice((-1.0, 1.0), (RESAMPLES, count))
    return np.vstack([np.ones(count), signs])


def rows_of(store: Store, scores: Scores) -> tuple[ImageScores, ...]:
    """Every image's scores: prompts x seeds, then class images; none for scores without a table."""
    if scores.table is None:
        return ()
    return ScoreTable.model_validate_json(get_blob(store, scores.table)).rows
