"""Intervals against closed forms, exact enumeration, scipy, and a simulation of their coverage."""

import itertools

import numpy as np
import pytest
from scipy import stats

from masters import statistics
from masters.statistics import (
    Interval,
    holm,
    interquartile_mean,
    mean_interval,
    minimum_detectable_effect,
    paired_difference,
    power_law,
    probability_of_improvement,
)


def scores_of(seeds: int, questions: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((seeds, questions)) < 0.7).astype(float)


def test_interval_is_a_plain_tuple_with_a_half_width() -> None:
    interval = Interval(0.5, 0.3, 0.9)
    assert interval == (0.5, 0.3, 0.9)
    assert interval.half_width == pytest.approx(0.3)


# --- The crossed bootstrap --------------------------------------------------------------------------------


def test_difference_is_the_mean_of_differences_and_has_antisymmetric_bounds() -> None:
    a, b = scores_of(3, 500), scores_of(3, 500, 1)
    forward, back = paired_difference(a, b), paired_difference(b, a)
    assert forward.estimate == pytest.approx(a.mean() - b.mean())
    assert forward.low < forward.estimate < forward.high
    assert back == pytest.approx((-forward.estimate, -forward.high, -forward.low))


def test_equal_arguments_give_equal_intervals_and_another_seed_another() -> None:
    a, b = scores_of(3, 200), scores_of(3, 200, 1)
    assert paired_difference(a, b) == paired_difference(a, b)
    assert paired_difference(a, b, seed=1) != paired_difference(a, b)


def test_pairing_removes_what_both_arms_share() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=(1, 400))
    a, b = hard + 0.1 + 0.01 * rng.normal(size=(3, 400)), hard + 0.01 * rng.normal(size=(3, 400))
    assert paired_difference(a, b).half_width < 0.05 * mean_interval(a).half_width


def test_mean_interval_is_the_difference_to_nothing() -> None:
    a = scores_of(4, 300)
    assert mean_interval(a) == paired_difference(a, np.zeros_like(a))


def test_no_spread_gives_no_width() -> None:
    interval = paired_difference(np.ones((3, 50)), np.zeros((3, 50)))
    assert interval == pytest.approx((1.0, 1.0, 1.0))


def test_one_seed_is_the_ordinary_bootstrap_over_questions() -> None:
    values = np.random.default_rng(0).normal(size=(1, 400))
    ours = mean_interval(values, resamples=8000)
    theirs = stats.bootstrap(
        (values[0],), np.mean, n_resamples=8000, method="percentile", random_state=1
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_large_samples_of_one_seed_agree_with_the_normal_interval() -> None:
    values = scores_of(1, 5000)
    expected = 1.959964 * values.std() / np.sqrt(values.size)
    assert mean_interval(values, resamples=4000).half_width == pytest.approx(expected, rel=0.05)


def test_every_level_is_a_pair_of_quantiles() -> None:
    values = np.random.default_rng(0).normal(size=(1, 2000))
    ratio = (
        mean_interval(values, resamples=8000, level=0.5).half_width
        / mean_interval(values, resamples=8000).half_width
    )
    assert ratio == pytest.approx(stats.norm.ppf(0.75) / stats.norm.ppf(0.975), rel=0.05)


def test_resamples_have_the_exact_crossed_distribution() -> None:
    """Two seeds and three questions: all 2^2 * 3^3 resamples can be written down."""
    values = np.array([[0.0, 0.3, 1.1], [0.4, 0.2, 2.3]])
    effect = values.mean(axis=1, keepdims=True) - values.mean()
    stretched = values + (np.sqrt(2) - 1) * effect
    every = [
        stretched[np.ix_(rows, columns)].mean()
        for rows in itertools.product(range(2), repeat=2)
        for columns in itertools.product(range(3), repeat=3)
    ]
    # A grid of levels, each away from the steps of so small a distribution, pins the whole of it down.
    for level in (0.15, 0.35, 0.55, 0.75):
        interval = mean_interval(values, resamples=60_000, level=level)
        tails = [(1 - level) / 2, (1 + level) / 2]
        inside = [np.quantile(every, np.clip([tail - 0.01, tail + 0.01], 0, 1)) for tail in tails]
        for bound, (low, high) in zip((interval.low, interval.high), inside, strict=True):
            assert low - 1e-6 <= bound <= high + 1e-6


def test_seed_effects_alone_have_the_unbiased_standard_error() -> None:
    """Drawn as they are, few seeds would show (seeds - 1) / seeds of the variance of their mean."""
    effects = np.array([-1.0, 0.0, 0.5, 2.0, -0.7, 0.1])[:, None]
    interval = mean_interval(np.repeat(effects, 20, axis=1), resamples=20_000, level=0.6827)
    assert interval.half_width == pytest.approx(effects.std(ddof=1) / np.sqrt(6), rel=0.05)


def test_noise_of_one_seed_and_question_is_overcounted_as_the_docstring_says() -> None:
    values = np.random.default_rng(0).normal(size=(10, 400))
    interval = mean_interval(values, resamples=8000)
    ratio = (interval.half_width / 1.959964) ** 2 / (values.var() / values.size)
    assert 2.0 < ratio < 4.0


def test_strata_hold_each_groups_share_and_remove_its_variance() -> None:
    groups = np.array(["easy"] * 100 + ["hard"] * 300)
    values = np.tile((groups == "easy").astype(float), (3, 1))
    assert mean_interval(values, groups) == pytest.approx((0.25, 0.25, 0.25))
    assert mean_interval(values).half_width > 0.02


def test_strata_do_not_depend_on_the_order_of_the_questions() -> None:
    values = np.random.default_rng(0).normal(size=(2, 300)) + np.arange(300) % 3
    groups = np.arange(300) % 3
    order = np.argsort(groups, kind="stable")
    assert mean_interval(values, groups) == pytest.approx(mean_interval(values[:, order], groups[order]))


def test_a_stratum_of_one_question_always_holds_it() -> None:
    values = np.array([[5.0, 1.0, 1.0, 1.0]])
    assert mean_interval(values, ["rare", "common", "common", "common"]) == pytest.approx((2.0, 2.0, 2.0))


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values, groups = scores_of(3, 90), np.arange(90) % 4
    whole = mean_interval(values, groups)
    monkeypatch.setattr(statistics, "_CELLS_AT_ONCE", 1000)
    assert mean_interval(values, groups) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "question_sd", "noise_sd", "low", "high"),
    [
        (1, 0.0, 1.0, 0.0, 0.91, 0.98),  # questions alone: the ordinary bootstrap
        (3, 0.0, 1.0, 1.0, 0.93, 1.0),
        (5, 0.1, 1.0, 1.0, 0.92, 1.0),  # seeds, questions and noise, as in a comparison of arms
        (10, 0.3, 0.5, 0.5, 0.88, 1.0),
        (5, 0.0, 0.0, 1.0, 0.98, 1.0),  # noise alone: conservative
        (3, 0.3, 0.0, 0.0, 0.70, 0.90),  # three seeds that differ: too narrow, as the module says
        (1, 0.3, 0.5, 0.5, 0.0, 0.60),  # one seed says nothing about another
    ],
)
def test_coverage(
    seeds: int, seed_sd: float, question_sd: float, noise_sd: float, low: float, high: float
) -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(300):
        values = 0.5 + seed_sd * rng.normal(size=(seeds, 1)) + question_sd * rng.normal(size=(1, 60))
        values = values + noise_sd * rng.normal(size=(seeds, 60))
        interval = mean_interval(values, resamples=300, seed=int(rng.integers(2**31)))
        hits += interval.low <= 0.5 <= interval.high
    assert low <= hits / 300 <= high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"a": np.ones((2, 3)), "b": np.ones((2, 4))}, r"a is \(2, 3\), b is \(2, 4\)"),
        ({"a": np.ones(3), "b": np.ones(3)}, r"a must be \(seeds, questions\)"),
        ({"a": np.ones((2, 0)), "b": np.ones((2, 0))}, "at least one of each"),
        ({"a": np.ones((2, 3)), "b": np.full((2, 3), np.nan)}, "b holds 6 values that are NaN"),
        ({"strata": [0, 1]}, "strata must name one group a question"),
        ({"level": 1.0}, "level must lie strictly between 0 and 1"),
        ({"level": 95}, "level must lie strictly between 0 and 1"),
        ({"resamples": 0}, "resamples must be at least 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        paired_difference(**({"a": np.ones((2, 3)), "b": np.zeros((2, 3))} | arguments))
    assert "\n" not in str(error.value)


# --- The other summaries ----------------------------------------------------------------------------------


def test_interquartile_mean() -> None:
    assert interquartile_mean([100.0, 1.0, 2.0, -50.0]) == 1.5
    assert interquartile_mean([1.0, 5.0]) == 3.0
    values = np.random.default_rng(0).normal(size=(5, 8))
    ordered = np.sort(values.ravel())
    assert interquartile_mean(values) == pytest.approx(ordered[10:30].mean())
    with pytest.raises(ValueError, match="empty"):
        interquartile_mean([])


def test_probability_of_improvement() -> None:
    assert probability_of_improvement([2.0, 3.0], [0.0, 1.0]) == 1.0
    assert probability_of_improvement([1.0], [1.0, 1.0]) == 0.5
    assert probability_of_improvement([1.0, 3.0], [2.0, 3.0]) == (0 + 0 + 1 + 0.5) / 4
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 7).astype(float), rng.integers(0, 6, 9).astype(float)
    assert probability_of_improvement(a, b) == pytest.approx(stats.mannwhitneyu(a, b).statistic / 63)
    assert probability_of_improvement(a, b) + probability_of_improvement(b, a) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="b holds 1 values that are NaN or infinite"):
        probability_of_improvement([1.0], [float("nan")])


def test_minimum_detectable_effect_is_found_with_the_power_it_promises() -> None:
    assert minimum_detectable_effect(1.0) == pytest.approx(1.959964 + 0.841621, abs=1e-5)
    assert minimum_detectable_effect(0.0) == 0.0
    for level, power in ((0.95, 0.8), (0.9, 0.95)):
        effect = minimum_detectable_effect(0.02, level, power)
        threshold = stats.norm.ppf((1 + level) / 2) * 0.02
        assert stats.norm.sf(threshold, loc=effect, scale=0.02) == pytest.approx(power)
    for arguments in ((-1.0,), (float("nan"),), (1.0, 0.0), (1.0, 0.95, 1.0)):
        with pytest.raises(ValueError, match="must"):
            minimum_detectable_effect(*arguments)


def test_holm_on_a_worked_example_and_its_limits() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2]) == pytest.approx([0.2])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([0.0, 0.0]) == pytest.approx([0.0, 0.0])
    for bad in ([], [-0.1], [1.1], [float("nan")]):
        with pytest.raises(ValueError, match="p_values"):
            holm(bad)


def test_holm_rejects_exactly_what_the_step_down_rule_rejects() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.random(6) ** 3
        rejected = np.zeros(6, dtype=bool)
        for step, index in enumerate(np.argsort(p)):
            if p[index] > 0.05 / (6 - step):
                break
            rejected[index] = True
        assert ((holm(p) <= 0.05) == rejected).all()
        assert (holm(p) <= np.minimum(6 * p, 1) + 1e-12).all()


def test_holm_bounds_the_chance_of_any_false_positive() -> None:
    rng = np.random.default_rng(0)
    false_positives = sum(holm(rng.random(10)).min() <= 0.05 for _ in range(2000))
    assert 0.035 < false_positives / 2000 < 0.065


def test_a_power_law_gives_its_exponent_and_its_error() -> None:
    x = np.array([1.0, 2, 4, 8, 16])
    assert power_law(x, 3 * x**1.5) == pytest.approx((1.5, 0), abs=1e-9)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.1, 5))
    fit, covariance = np.polyfit(np.log(x), np.log(x * noise), 1, cov=True)
    assert power_law(x, x * noise) == pytest.approx((fit[0], covariance[0, 0] ** 0.5))
    for y in ([1, 2], [1, 2, 0], [1, 2, 3, 4]):
        with pytest.raises(ValueError, match="three or more points"):
            power_law([1, 2, 3], y)
