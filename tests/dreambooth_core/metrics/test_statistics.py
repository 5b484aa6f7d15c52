import numpy as np
import pytest
from scipy import stats

from dreambooth_core.metrics.statistics import (
    compare,
    estimate,
    interval,
    of_base,
    sign_flip_p,
    smallest_effect,
)
from dreambooth_core.storage.records import ImageScores


def rows_of(scores, metric="identity", kind="scene") -> list[ImageScores]:
    """A prompt per row and a seed per column; nan gives an image without a score."""
    return [
        ImageScores(
            prompt=f"prompt {prompt:02d}",
            kind=kind,
            seed=seed,
            image=f"{prompt}-{seed}",
            base_image="",
            scores={} if np.isnan(value) else {metric: float(value)},
            base_scores={metric: 0.5},
        )
        for prompt, values in enumerate(np.atleast_2d(scores))
        for seed, value in enumerate(values)
    ]


def simulated(draws: np.random.Generator, prompts: int, gain: float = 0.0):
    """Champion and challenger, better by `gain`: effects of prompt and seed shared by both, and noise."""
    shape = (prompts, 4)
    shared = 0.6 + draws.normal(0, 0.05, (prompts, 1)) + draws.normal(0, 0.06, shape)
    own = draws.normal(0, 0.02, (prompts, 1))
    champion = shared + draws.normal(0, 0.03, shape)
    return champion, shared + gain + own + draws.normal(0, 0.03, shape)


def intervals(prompts: int, gain: float, runs: int):
    """Intervals of the paired difference, over many simulated evaluations."""
    draws = np.random.default_rng(prompts)
    pairs = [simulated(draws, prompts, gain) for _ in range(runs)]
    return np.array([interval((new - old).mean(1), 0.95) for old, new in pairs])


def test_seeds_are_averaged_within_a_prompt_and_prompts_weigh_equally():
    table = [[0.2, 0.4, np.nan, np.nan], [0.8, 0.8, 0.8, 0.8]]
    assert estimate("identity", rows_of(table)).value == pytest.approx((0.3 + 0.8) / 2)


def test_each_class_image_is_a_unit():
    table = [0.1, 0.2, 0.3, 0.6]
    found = estimate("prior_drift", rows_of(table, "prior_drift", "class"))
    assert found.value == pytest.approx(0.3)
    assert found.high - found.low > 0
    one_prompt = estimate("prior_drift", rows_of(table, "prior_drift", "scene"))
    assert (one_prompt.low, one_prompt.high) == (None, None)


def test_a_metric_of_prompts_and_class_images_at_once_is_refused():
    mixed = rows_of([[0.1, 0.2]]) + rows_of([[0.1, 0.2]], kind="class")
    with pytest.raises(ValueError, match="not of both"):
        estimate("identity", mixed)


def test_a_metric_without_values_is_refused():
    with pytest.raises(ValueError, match="no image"):
        estimate("clip_i", rows_of([[0.1, 0.2]]))


def test_the_base_is_compared_by_its_own_scores():
    found = compare("identity", rows_of([[0.6, 0.8]]), of_base(rows_of([[0.6, 0.8]])), 0.95)
    assert (found.champion, found.difference) == (pytest.approx(0.5), pytest.approx(0.2))


def test_an_interval_of_few_values_is_at_least_students():
    values = np.array([1.0, 2.0, 3.0, 4.0, 10.0])
    expected = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    low, high = interval(values, 0.95)
    assert low == pytest.approx(expected[0])
    assert high >= expected[1]


def test_an_interval_follows_the_skewness_of_its_values():
    """Three in twenty: the bootstrap mean is binomial, with a wider long tail than Student's."""
    values = np.array([1.0] * 3 + [0.0] * 17)
    students = stats.t.interval(0.95, 19, 0.15, stats.sem(values))
    tail = stats.norm.cdf(-stats.t.ppf(0.975, 19) * np.sqrt(20 / 19))
    low, high = interval(values, 0.95)
    assert low == pytest.approx(students[0])
    assert high == stats.binom.ppf(1 - tail, 20, 0.15) / 20
    assert high > 1.05 * students[1]


def test_an_interval_is_clipped_to_its_bounds():
    rows = rows_of([[0.0]] * 9 + [[1.0]], "memorisation")
    free, bound = (estimate("memorisation", rows, bounds=b) for b in ((-1.0, 2.0), (0.0, 1.0)))
    assert free.low < 0
    assert bound == free.model_copy(update={"low": 0.0})


def test_equal_values_have_an_interval_of_zero_width():
    assert interval(np.full(5, 0.25), 0.95) == (0.25, 0.25)


@pytest.mark.parametrize("prompts", [2, 5, 10, 25])
def test_of_equal_models_the_interval_of_95_percent_covers_zero_in_93_to_97(prompts):
    """Also with five prompts, where the percentile bootstrap alone covers 85 %."""
    low, high = intervals(prompts, gain=0.0, runs=800).T
    assert 0.93 <= np.mean((low <= 0) & (high >= 0)) <= 0.97


def test_with_few_skewed_values_the_interval_covers_slightly_less_than_its_level():
    """A known limit: five values do not show their distribution's tail."""
    draws = np.random.default_rng(0)
    found = [interval(draws.gamma(2.0, size=5) - 2, 0.95) for _ in range(800)]
    assert 0.89 <= np.mean([low <= 0 <= high for low, high in found]) <= 0.95


def test_power_grows_with_the_number_of_prompts():
    powers = [np.mean(intervals(prompts, 0.02, 300)[:, 0] > 0) for prompts in (5, 10, 25, 50)]
    assert powers == sorted(powers)
    assert powers[0] < 0.4 < 0.9 < powers[-1]


def test_a_comparison_uses_the_paired_differences_of_prompts():
    old, new = simulated(np.random.default_rng(7), 10)
    found = compare("identity", rows_of(new), rows_of(old), 0.9)
    units = (new - old).mean(1)
    assert (found.low, found.high) == pytest.approx(interval(units, 0.9))
    assert found.difference == pytest.approx(found.challenger - found.champion)
    assert found.p == sign_flip_p(units)
    assert found.smallest_effect == pytest.approx(smallest_effect(units, 0.9))
    assert (found.prompts, found.images) == (10, 40)


def test_pairs_of_equal_seeds_give_narrower_intervals():
    old, new = simulated(np.random.default_rng(2), 25)
    other = np.roll(new, 1, axis=0)
    paired = compare("identity", rows_of(new), rows_of(old), 0.95)
    unpaired = compare("identity", rows_of(other), rows_of(old), 0.95)
    assert paired.difference == pytest.approx(unpaired.difference)
    assert paired.high - paired.low < 0.6 * (unpaired.high - unpaired.low)


@pytest.mark.parametrize("count", [3, 25])
def test_the_smallest_effect_is_detected_with_a_power_of_80_percent(count):
    values = np.random.default_rng(3).normal(size=count)
    effect = smallest_effect(values, 0.95)
    draws = np.random.default_rng(4).normal(effect, values.std(ddof=1), (4000, count))
    low, _ = stats.t.interval(0.95, count - 1, draws.mean(1), stats.sem(draws, axis=1))
    assert np.mean(low > 0) == pytest.approx(0.8, abs=0.02)


def test_the_order_of_rows_has_no_effect():
    old, new = (rows_of(table) for table in simulated(np.random.default_rng(4), 6))
    assert compare("identity", new, old, 0.95) == compare("identity", new[::-1], old[::-1], 0.95)


def test_a_pair_with_a_missing_value_is_dropped():
    old, new = [[0.5, 0.1], [0.5, 0.5]], [[0.6, np.nan], [0.6, 0.6]]
    found = compare("identity", rows_of(new), rows_of(old), 0.95)
    assert (found.challenger, found.champion) == (pytest.approx(0.6), pytest.approx(0.5))
    assert (found.difference, found.images, found.prompts) == (pytest.approx(0.1), 3, 2)


def test_other_seeds_or_prompts_are_refused():
    with pytest.raises(ValueError, match="same prompts and seeds"):
        compare("identity", rows_of([[0.1, 0.2]]), rows_of([[0.1, 0.2, 0.3]]), 0.95)


@pytest.mark.parametrize(("higher", "rate"), [(True, 0.625), (False, 0.375)])
def test_a_tie_is_half_a_win(higher, rate):
    old, new = [[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.6], [0.4, 0.6]]
    found = compare("identity", rows_of(new), rows_of(old), 0.95, higher)
    assert found.win_rate == rate


@pytest.mark.parametrize(
    ("values", "p"),
    [([1, 2, 3, 4, 5], 2 / 32), ([0, 0, 0], 1), ([1, -1], 1), ([3, -1], 1), ([1] * 12, 2 / 4096)],
)
def test_few_values_use_every_sign_pattern(values, p):
    assert sign_flip_p(np.array(values, dtype=float)) == p


def test_many_values_use_random_signs_and_p_is_never_zero():
    values = np.random.default_rng(5).normal(0.35, 1, 30)
    assert sign_flip_p(np.ones(30)) == 1 / 5001
    assert sign_flip_p(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)
