"""Intervals against closed forms, exact enumeration, scipy, and simulations of their coverage."""

import itertools

import numpy as np
import pytest
from scipy import stats

from masters_book.claims.significance import (
    holm,
    minimum_detectable_effect,
    p_value,
    power_law,
    standard_error,
)
from masters_book.claims.statistics import Interval, mean_interval


def scores_of(seeds: int, questions: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((seeds, questions)) < 0.7).astype(float)


def half_width(interval: Interval) -> float:
    return (interval.high - interval.low) / 2


# --- Intervals over seeds and questions -------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 3])
def test_difference_is_the_mean_of_differences_and_has_antisymmetric_bounds(seeds: int) -> None:
    a, b = scores_of(seeds, 500), scores_of(seeds, 500, 1)
    groups = np.arange(500) % 3
    forward, back = mean_interval(a - b, groups), mean_interval(b - a, groups)
    assert forward.estimate == pytest.approx(a.mean() - b.mean())
    assert forward.low < forward.estimate < forward.high
    assert back[:3] == pytest.approx((-forward.estimate, -forward.high, -forward.low), rel=1e-9)
    assert back.freedom == pytest.approx(forward.freedom)


def test_equal_arguments_give_equal_intervals_and_another_seed_another() -> None:
    a, b = scores_of(1, 200).repeat(3, axis=0), scores_of(3, 200, 1)
    assert mean_interval(a - b) == mean_interval(a - b)
    assert mean_interval(a - b, seed=1) != mean_interval(a - b)


def test_pairing_removes_what_both_arms_share() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=(1, 400))
    a, b = hard + 0.1 + 0.01 * rng.normal(size=(3, 400)), hard + 0.01 * rng.normal(size=(3, 400))
    assert half_width(mean_interval(a - b)) < 0.05 * half_width(mean_interval(a))


def test_no_spread_gives_no_width() -> None:
    interval = mean_interval(np.ones((3, 50)))
    assert interval[:3] == pytest.approx((1.0, 1.0, 1.0))


def test_one_seed_and_many_questions_is_the_ordinary_bootstrap_over_questions() -> None:
    values = np.random.default_rng(0).normal(size=(1, 400))
    ours = mean_interval(values, resamples=4000)
    theirs = stats.bootstrap(
        (values[0],), np.mean, n_resamples=8000, method="percentile", random_state=1
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_large_samples_of_one_seed_agree_with_the_normal_interval() -> None:
    values = scores_of(1, 5000)
    expected = 1.959964 * values.std() / np.sqrt(values.size)
    assert half_width(mean_interval(values, resamples=4000)) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_resamples_of_questions_have_the_exact_stratified_distribution(seed: int) -> None:
    """With strata of two and three questions, all 2^2 * 3^3 resamples can be enumerated."""
    values, groups = np.random.default_rng(seed).normal(size=(1, 5)), [0, 1, 0, 1, 1]
    effects = [
        np.sqrt(n / (n - 1)) * (values[0, members] - values[0, members].mean())
        for n, members in ((2, [0, 2]), (3, [1, 3, 4]))
    ]
    every = [
        (effects[0][list(first)].sum() + effects[1][list(second)].sum()) / 5
        for first in itertools.product(range(2), repeat=2)
        for second in itertools.product(range(3), repeat=3)
    ]
    interval = mean_interval(values, groups, resamples=60_000)
    stretched = stats.t.ppf(0.975, 5 - 2) / stats.norm.ppf(0.975) * np.array(every)
    for bound, tail in ((interval.low, 0.025), (interval.high, 0.975)):
        low, high = values.mean() + np.quantile(stretched, [tail - 0.01, tail + 0.01])
        assert low - 1e-6 <= bound <= high + 1e-6


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_where_seeds_alone_vary_it_is_the_t_interval(seeds: int) -> None:
    effects = np.random.default_rng(seeds).normal(0.3, 1, seeds)
    interval = mean_interval(np.repeat(effects[:, None], 20, axis=1))
    expected = stats.ttest_1samp(effects, 0).confidence_interval()
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=0.01)


def test_seeds_questions_and_noise_are_counted_once_each() -> None:
    """Against the mean squares of a two-way analysis of variance, computed cell by cell."""
    rng = np.random.default_rng(3)
    seeds, questions = 4, 50
    x = rng.normal(size=(seeds, 1)) + 4 * rng.normal(size=(1, questions))
    x = x + 10 * rng.normal(size=(seeds, questions))
    grand = x.sum() / x.size
    row = [sum(x[i]) / questions for i in range(seeds)]
    column = [sum(x[:, j]) / seeds for j in range(questions)]
    of_seeds = questions * sum((mean - grand) ** 2 for mean in row) / (seeds - 1)
    of_questions = seeds * sum((mean - grand) ** 2 for mean in column) / (questions - 1)
    cells = itertools.product(range(seeds), range(questions))
    noise = sum((x[i, j] - row[i] - column[j] + grand) ** 2 for i, j in cells)
    noise /= (seeds - 1) * (questions - 1)
    variance = (of_seeds + of_questions - noise) / x.size
    generous = of_seeds * (seeds + 1) / (seeds - 1)
    share = generous / (generous + of_questions - noise)
    assert 0.2 < noise / of_questions < 0.8 and 0.2 < share < 0.8  # every term matters
    freedom = 1 / (share / (seeds - 1) + (1 - share) / (questions - 1))
    expected = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    found = mean_interval(x, resamples=40_000)
    assert half_width(found) == pytest.approx(expected, rel=0.02)
    assert found.freedom == pytest.approx(freedom)
    assert standard_error(found) == pytest.approx(np.sqrt(variance), rel=0.02)


def test_seeds_that_agree_by_luck_do_not_narrow_the_interval_below_the_noise() -> None:
    """Each question's answers differ between seeds, but the seeds' means are equal."""
    seeds, questions = 5, 400
    rng = np.random.default_rng(0)
    right = np.array([rng.permutation(np.arange(questions) < 12) for _ in range(seeds)], dtype=float)
    assert right.mean(axis=1).std() == 0
    found = mean_interval(right)
    noise = right.mean() * (1 - right.mean()) / right.size  # of independent answers
    assert standard_error(found) == pytest.approx(np.sqrt(noise), rel=0.1)


def test_strata_keep_each_groups_share_and_remove_its_variance() -> None:
    groups = np.array(["easy"] * 100 + ["hard"] * 300)
    values = np.tile((groups == "easy").astype(float), (3, 1))
    assert mean_interval(values, groups)[:3] == pytest.approx((0.25, 0.25, 0.25))
    assert half_width(mean_interval(values)) > 0.02


def test_the_order_of_the_questions_does_not_matter() -> None:
    values = np.random.default_rng(0).normal(size=(2, 300)) + np.arange(300) % 3
    groups = np.arange(300) % 3
    order = np.random.default_rng(1).permutation(300)
    assert mean_interval(values) == pytest.approx(mean_interval(values[:, order]))
    assert mean_interval(values, groups) == pytest.approx(mean_interval(values[:, order], groups[order]))


def test_a_stratum_of_one_question_always_holds_it() -> None:
    values = np.array([[5.0, 1.0, 1.0, 1.0]])
    assert mean_interval(values, ["rare", "common", "common", "common"])[:3] == pytest.approx((2.0, 2.0, 2.0))


HOLM = 0.05 / 14  # the strictest level of Holm's procedure for 14 tested claims
AT_MOST = {3: 2.5, 5: 1.25, 10: 1.1}  # seeds: largest size of a test at that level, in multiples of it


def scores_with(seed_variance: float, question_variance: float, noise: float, seeds: int) -> np.ndarray:
    """Return scores ``(seeds, 60)`` for which the interval estimates exactly these variances of the mean.

    ``seed_variance`` is what the seeds' means show, ``noise`` what the answers show.
    """
    rng, size = np.random.default_rng(1), 60
    pattern = np.linspace(-1, 1, seeds)
    pattern *= np.sqrt(seed_variance * seeds) / pattern.std(ddof=1)
    effects = stats.norm.ppf((np.arange(size) + 0.5) / size)
    effects *= np.sqrt((question_variance + noise) * size / effects.var(ddof=1))
    rest = rng.normal(size=(seeds, size))
    rest -= rest.mean(axis=0)
    rest -= rest.mean(axis=1, keepdims=True)
    rest *= np.sqrt(noise * seeds * size * (seeds - 1) * (size - 1) / np.square(rest).sum())
    return pattern[:, None] + effects + rest


def size_of_test(share: float, noisy: float, seeds: int, alpha: float) -> float:
    """Return how often a true hypothesis is rejected at a level, without simulation.

    The estimate is standard normal. ``share`` of its variance is from seeds and noise, and ``noisy`` of that
    from noise. The variance between the seeds' means follows chi-squared.
    """
    shown = stats.chi2.ppf((np.arange(40) + 0.5) / 40, seeds - 1) / (seeds - 1)
    rejected = []
    for variance in shown:
        found = mean_interval(scores_with(share * variance, 1 - share, share * noisy, seeds), resamples=4000)
        critical = stats.t.ppf(1 - alpha / 2, found.freedom) * standard_error(found)
        rejected.append(2 * stats.norm.sf(critical))
    return float(np.mean(rejected))


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("noisy", [0.0, 0.3, 1.0])
def test_size_at_any_share_of_seeds_in_the_variance(seeds: int, noisy: float) -> None:
    for share in (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0):
        # Two seeds may agree by chance; more seeds rarely enough for the level to hold.
        assert size_of_test(share, noisy, seeds, 0.05) < (0.1 if seeds == 2 else 0.055), share
        if seeds > 2:
            assert size_of_test(share, noisy, seeds, HOLM) < AT_MOST[seeds] * HOLM, share


def test_a_test_is_not_too_conservative_without_noise() -> None:
    for seeds, least in ((3, 0.024), (5, 0.03), (10, 0.036)):
        assert all(size_of_test(share, 0.0, seeds, 0.05) > least for share in (0.1, 0.3, 0.5, 0.8, 1.0))


REPETITIONS, QUESTIONS = 1000, 40
STRATA = np.repeat([0, 1, 2, 3], [4, 6, 10, 20])


def experiments(kind: str, seeds: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return differences of two arms, ``(repetitions, seeds, questions)``, and the true mean."""

    def effects(seed_std: float, question_std: float, noise_std: float) -> np.ndarray:
        total = seed_std * rng.normal(size=(REPETITIONS, seeds, 1))
        total = total + question_std * rng.normal(size=(REPETITIONS, 1, QUESTIONS))
        return total + noise_std * rng.normal(size=(REPETITIONS, seeds, QUESTIONS))

    match kind:
        case "seeds dominate":
            return 0.5 + effects(0.3, 0.3, 0.3), 0.5
        case "questions dominate":
            return 0.5 + effects(0.02, 1, 0.3), 0.5
        case "noise dominates":
            return 0.5 + effects(0, 0, 1), 0.5
        case "all three":
            return 0.5 + effects(0.1, 0.6, 0.6), 0.5
        case "all three in strata":
            return STRATA + effects(0.1, 0.6, 0.6), float(STRATA.mean())
    # Right or wrong; some questions are hard for both arms, some for one.
    assert kind == "right or wrong"
    hard = effects(0, 1, 0)
    a, b = (hard + effects(0.1, 0.5, 0.7) > -0.5 for _ in range(2))
    return a.astype(float) - b, 0.0


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(
    "kind",
    [
        "seeds dominate",
        "questions dominate",
        "noise dominates",
        "all three",
        "all three in strata",
        "right or wrong",
    ],
)
def test_intervals_cover_the_truth_and_p_values_reject_it_no_more_often_than_they_say(
    kind: str, seeds: int
) -> None:
    differences, truth = experiments(kind, seeds, np.random.default_rng(7))
    strata = STRATA if kind == "all three in strata" else None
    found = [mean_interval(scores, strata, resamples=500, seed=i) for i, scores in enumerate(differences)]
    assert np.mean([interval.low <= truth <= interval.high for interval in found]) > 0.935
    two_sided = np.array([p_value(interval, truth) for interval in found])
    assert np.mean(two_sided < 0.05) < 0.065
    size = AT_MOST[seeds] * HOLM
    assert np.mean(two_sided < HOLM) < size + 3 * np.sqrt(size / REPETITIONS)
    if kind in ("seeds dominate", "questions dominate"):  # elsewhere the floor makes it conservative
        assert np.mean(two_sided < 0.05) > 0.015
    for side in ("greater", "less"):
        assert np.mean([p_value(interval, truth, side) < 0.025 for interval in found]) < 0.04


def test_one_seed_does_not_cover_others() -> None:
    differences, truth = experiments("seeds dominate", 1, np.random.default_rng(7))
    found = [mean_interval(scores, resamples=300) for scores in differences[:300]]
    assert np.mean([interval.low <= truth <= interval.high for interval in found]) < 0.6


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.ones(3), r"must be \(seeds, questions\)"),
        (np.ones((2, 0)), "at least one of each"),
        (np.full((2, 3), np.nan), "6 scores are NaN"),
        (np.ones((2, 3)), "strata must name one group per question"),
    ],
)
def test_bad_input_is_refused_in_one_line(scores: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        mean_interval(scores, [0, 1])
    assert "\n" not in str(error.value)


# --- P-values, detectable effects, Holm, power laws ---------------------------------------------------------


@pytest.mark.parametrize("freedom", [2.0, 4.5, np.inf])
def test_standard_error_and_p_value_follow_students_t(freedom: float) -> None:
    estimate, error = 0.3, 0.2
    effect = Interval(estimate, *stats.t.interval(0.95, freedom, estimate, error), freedom)
    assert standard_error(effect) == pytest.approx(error)
    for against in (0.0, 0.5):
        greater = stats.t.sf(estimate, freedom, loc=against, scale=error)
        assert p_value(effect, against, "greater") == pytest.approx(greater)
        assert p_value(effect, against, "less") == pytest.approx(1 - greater)
        assert p_value(effect, against) == pytest.approx(2 * min(greater, 1 - greater))
    assert p_value(Interval(1.0, 0.0, 2.0, freedom)) == pytest.approx(0.05)


def test_where_seeds_alone_vary_the_p_value_is_that_of_a_t_test() -> None:
    effects = np.random.default_rng(0).normal(1, 1, 5)
    found = mean_interval(np.repeat(effects[:, None], 30, axis=1), resamples=4000)
    assert p_value(found) == pytest.approx(stats.ttest_1samp(effects, 0).pvalue, rel=0.02)


def test_an_interval_in_other_units_keeps_its_degrees_of_freedom() -> None:
    assert Interval(0.1, 0.0, 0.3, 4.0).scaled(100) == pytest.approx((10.0, 0.0, 30.0, 4.0))


def test_p_value_of_many_questions_is_that_of_a_paired_t_test() -> None:
    a, b = scores_of(1, 3000), scores_of(1, 3000, 5)
    effect = mean_interval(a - b, resamples=20_000)
    for side in ("two-sided", "greater", "less"):
        expected = stats.ttest_rel(a[0], b[0], alternative=side).pvalue
        assert 0.02 < expected < 0.98
        assert p_value(effect, alternative=side) == pytest.approx(expected, abs=0.01)


def test_p_value_of_an_interval_without_width() -> None:
    exact = Interval(0.5, 0.5, 0.5)
    for side in ("two-sided", "greater", "less"):
        assert p_value(exact, 0.5, side) == 1.0
    assert p_value(exact) == p_value(exact, 0.0, "greater") == p_value(exact, 1.0, "less") == 0.0
    assert p_value(exact, 0.0, "less") == p_value(exact, 1.0, "greater") == 1.0


def test_p_value_refuses_bad_input() -> None:
    for bad in (Interval(*[float("nan")] * 3), Interval(0.0, 1.0, -1.0)):
        with pytest.raises(ValueError, match="finite estimate and low <= high"):
            p_value(bad)


@pytest.mark.parametrize("freedom", [3.0, 20.0, np.inf])
def test_minimum_detectable_effect_is_found_in_four_tests_of_five(freedom: float) -> None:
    found = Interval(0.7, *stats.t.interval(0.95, freedom, 0.7, 0.02), freedom)
    threshold = stats.t.ppf(0.975, freedom) * 0.02
    power = stats.t.sf(threshold, freedom, loc=minimum_detectable_effect(found), scale=0.02)
    assert power == pytest.approx(0.8)
    assert minimum_detectable_effect(Interval(0.3, 0.3, 0.3)) == 0.0
    with pytest.raises(ValueError, match="needs a finite estimate"):
        minimum_detectable_effect(Interval(0, 1, -1))


def test_holm_on_a_worked_example_and_its_limits() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2]) == pytest.approx([0.2])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([0.0, 0.0]) == pytest.approx([0.0, 0.0])


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
