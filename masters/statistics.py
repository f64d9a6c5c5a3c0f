"""How sure a comparison is: intervals, paired differences, and what the design could have seen at all.

One idea: two arms answer the same questions with the same seeds, so the score that is resampled is their
difference, question by question and seed by seed. Seeds and questions are drawn independently of each other
and both with replacement (a two-way crossed, or pigeonhole, bootstrap), because a result must hold for other
questions and for other training runs alike. All functions are pure: arrays in, numbers out.

What the interval is not. The crossed bootstrap is conservative: noise that belongs to one seed and one
question alone is drawn twice, so its share of the variance is counted about three times. It is not a cure for
very few
seeds: it knows the seeds it was given, and with one seed it speaks about other questions only, never about
another training run.

Departures from the paper: it reports single runs and no spread, so everything here is an addition.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]

# Counts of drawn questions held at once, so that memory does not grow with the number of resamples.
_CELLS_AT_ONCE = 2_000_000


class Interval(NamedTuple):
    """An estimate between the bounds of its interval, in the units of the scores."""

    estimate: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the distance between the bounds."""
        return (self.high - self.low) / 2


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    strata: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The mean of a - b with a percentile bootstrap interval over seeds and questions together.

    Args:
        a: scores of one arm, ``(seeds, questions)``.
        b: scores of the other, same shape: row i is the same seed and column j the same question as in ``a``.
        strata: the group of each question, such as its task, ``(questions,)``; every resample then holds as
            many questions of each group as the data do. The mean stays the mean over all questions.
        resamples: bootstrap resamples.
        seed: seed of the resampling; equal arguments give equal intervals.
        level: coverage of the interval, strictly between 0 and 1.

    Returns:
        The difference and its interval. With one seed only questions are resampled, so the interval says
        nothing about another training run.

    Raises:
        ValueError: shapes differ or are not ``(seeds, questions)``, a score is not finite, or an argument is
            out of range.
    """
    first, second = _scores(a, "a"), _scores(b, "b")
    if first.shape != second.shape:
        raise ValueError(
            f"paired scores must have one shape (seeds, questions): a is {first.shape}, b is {second.shape}; "
            "keep the seeds and questions both arms have"
        )
    return _crossed_bootstrap(first - second, strata, resamples, seed, level)


def mean_interval(
    scores: ArrayLike,
    strata: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The mean score of one arm, ``(seeds, questions)``, with the interval of ``paired_difference``.

    To compare two arms use ``paired_difference``: overlapping intervals of two means decide nothing.

    Raises:
        ValueError: as ``paired_difference``.
    """
    return _crossed_bootstrap(_scores(scores, "scores"), strata, resamples, seed, level)


def interquartile_mean(values: ArrayLike) -> float:
    """The mean of the middle half of all values: a quarter of them is left out at each end.

    The number left out at an end is rounded down, so fewer than four values give their plain mean.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    return float(stats.trim_mean(_values(values, "values"), 0.25))


def probability_of_improvement(a: ArrayLike, b: ArrayLike) -> float:
    """The chance that a run of one arm beats a run of the other, ties counted half (Mann-Whitney U over n m).

    Args:
        a: one score a seed, ``(seeds_a,)``.
        b: one score a seed of the other arm, ``(seeds_b,)``; the numbers of seeds may differ.

    Raises:
        ValueError: an arm has no score, or one is not finite.
    """
    gap = _values(a, "a")[:, None] - _values(b, "b")[None, :]
    return float(np.mean((gap > 0) + 0.5 * (gap == 0)))


def minimum_detectable_effect(standard_error: float, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided test would find with the given power.

    (z(1 - (1 - level) / 2) + z(power)) times the standard error, with z the normal quantile. For a 95 %
    interval the standard error is about its half width over 1.96.

    Raises:
        ValueError: a negative standard error, or a level or power outside (0, 1).
    """
    if not (np.isfinite(standard_error) and standard_error >= 0):
        raise ValueError(f"standard_error must be a finite number of at least 0, not {standard_error}")
    _between(level, "level")
    _between(power, "power")
    return float((stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power)) * standard_error)


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjusted p-values, in the order given: comparing each with alpha bounds the chance of
    one or more false positives among all of them by alpha, whatever their dependence.

    Raises:
        ValueError: there is no p-value, or one lies outside [0, 1].
    """
    p = _values(p_values, "p_values")
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"p_values must lie in [0, 1]; the smallest is {p.min()}, the largest {p.max()}")
    order = np.argsort(p, kind="stable")
    # The k-th smallest is multiplied by how many are still untested; the maximum keeps the order of the
    # p-values.
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def power_law(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """The exponent of ``y = c * x ** exponent`` and its standard error: a line through the logarithms.

    Args:
        x: ``(points,)``, positive.
        y: ``(points,)``, positive.

    Raises:
        ValueError: fewer than three points, or a value that is not positive.
    """
    xs, ys = _values(x, "x"), _values(y, "y")
    if len(xs) != len(ys) or len(xs) < 3 or xs.min() <= 0 or ys.min() <= 0:
        raise ValueError("a power law needs three or more points, all of them positive")
    line = stats.linregress(np.log(xs), np.log(ys))
    return float(line.slope), float(line.stderr)


def _crossed_bootstrap(
    scores: Array, strata: ArrayLike | None, resamples: int, seed: int, level: float
) -> Interval:
    """Percentile interval of the mean of ``(seeds, questions)``, rows and columns drawn independently."""
    seeds, questions = scores.shape
    _between(level, "level")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    sizes = np.array([questions])
    estimate = float(scores.mean())
    if strata is not None:
        groups = np.asarray(strata)
        if groups.shape != (questions,):
            raise ValueError(f"strata must name one group a question: {(questions,)}, not {groups.shape}")
        _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        scores = scores[:, np.argsort(group, kind="stable")]
    if seeds > 1:
        # Drawn from few seeds, their mean varies (seeds - 1) / seeds as much as it should: stretch the seed
        # effects.
        effect = scores.mean(axis=1, keepdims=True) - estimate
        scores = scores + (np.sqrt(seeds / (seeds - 1)) - 1) * effect

    # Question j of a group of n starting at s is drawn as s + floor(u n); both are constant along a column.
    size = np.repeat(sizes, sizes)
    start = np.repeat(np.cumsum(sizes) - sizes, sizes)
    rng = np.random.default_rng(seed)
    seed_share = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    means = np.empty(resamples)
    chunk = max(1, _CELLS_AT_ONCE // questions)
    for first in range(0, resamples, chunk):
        rows = min(chunk, resamples - first)
        drawn = (rng.random((rows, questions), dtype=np.float32) * size).astype(np.int64)
        # A float32 just below 1 times a large size may round up to the size itself.
        drawn = np.minimum(drawn, size - 1) + start + questions * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * questions).reshape(rows, questions)
        by_seed = counts @ scores.T / questions
        means[first : first + rows] = (by_seed * seed_share[first : first + rows]).sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high))


def _scores(value: ArrayLike, name: str) -> Array:
    scores = np.asarray(value, dtype=np.float64)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"{name} must be (seeds, questions) with at least one of each, not {scores.shape}")
    return _finite(scores, name)


def _values(value: ArrayLike, name: str) -> Array:
    values = np.asarray(value, dtype=np.float64).ravel()
    if values.size == 0:
        raise ValueError(f"{name} is empty; give at least one value")
    return _finite(values, name)


def _finite(values: Array, name: str) -> Array:
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ValueError(f"{name} holds {bad} values that are NaN or infinite; drop or judge them first")
    return values


def _between(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, not {value}")
