"""Confidence intervals over seeds and questions, paired differences, p-values, and detectable effects.

Two arms answer the same questions with the same seeds. The quantity of interest is the mean of their
difference, per question and seed. A result should hold for other questions and for other training runs, so
the interval covers both, and counts each once. With S seeds, Q questions and a score that is the sum of a
seed effect, a question effect and noise (two-way analysis of variance), the variance of the mean is::

    variance = sigma_seed^2 / S + sigma_question^2 / Q + sigma_noise^2 / (S Q)

* The variance between the seeds' means estimates the first and the last term together. It cannot truly be
  below the last term alone, and that one is well known: S Q answers tell it. So the estimate is at least
  ``sigma_noise^2 / (S Q)``. Without this floor, seeds that happen to agree give an interval that is far too
  narrow.
* Questions are many and not normal: their effects are resampled (a bootstrap within each stratum). Before
  that they are shrunk by ``sqrt(max(0, 1 - MS_noise / MS_questions))``, a ratio of mean squares, because the
  noise left in their means is counted already.
* Seeds are few, and a bootstrap could only draw those few. A normal variable with their standard error is
  added instead.
* Few seeds also tell their own variance badly, so the interval is stretched by the ratio of Student's t to
  the normal. Let V_s and V_q be the variances from seeds and questions, the floor not included in V_s::

      1 / nu = u / (S - 1) + (1 - u) / (Q - strata),  u = g V_s / (g V_s + rest),  g = (S + 1) / (S - 1)

  The factor g allows for a small V_s that is luck: with nu from V_s itself (g = 1), a test at
  level 0.05 / 14 with three seeds rejects a true hypothesis 3.6 times too often. (Satterthwaite's formula
  weighs with the squares of the shares and is further off.)

Where only seeds vary this is the t interval; with one seed it is nearly the ordinary bootstrap. For three to
ten seeds ``tests/claims/test_statistics.py`` simulates coverage, and the size of tests at 0.05 and at
0.05 / 14: intervals cover the truth at least as often as they say, and clearly more often where noise
dominates.

With one seed an interval speaks about other questions only, never about another training run. With two seeds
it may cover only 90 %. The effects of seeds are assumed to be about normal.

Departures from the paper: it reports single runs and no spread, so all of this is an addition.

All functions are pure: arrays in, numbers out.
"""

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Array = NDArray[np.float64]
Alternative = Literal["two-sided", "greater", "less"]

# Drawn questions held at once: memory does not grow with the number of resamples, and they stay in the cache.
_CELLS_AT_ONCE = 1 << 18


class Interval(NamedTuple):
    """An estimate with its interval, in the units of the scores.

    ``freedom`` is the degrees of freedom of the Student's t distribution behind the bounds; infinite means
    normal.
    """

    estimate: float
    low: float
    high: float
    freedom: float = math.inf

    def scaled(self, factor: float) -> "Interval":
        """Return the interval in other units: ``factor`` (positive) times estimate and bounds."""
        return Interval(factor * self.estimate, factor * self.low, factor * self.high, self.freedom)

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
    """Return the mean of a - b with its interval over seeds and questions together.

    A stratified bootstrap of the questions and Student's t for the seeds; see the top of the module.

    Args:
        a: scores of one arm, ``(seeds, questions)``.
        b: scores of the other, same shape: row i is the same seed and column j the same question as in ``a``.
        strata: the group of each question, such as its task, ``(questions,)``; every resample then holds as
            many questions of each group as the data do. The mean stays the mean over all questions.
        resamples: bootstrap resamples, drawn as mirrored pairs (an odd number is rounded up).
        seed: seed of the resampling; equal arguments give equal intervals, whatever the order of the
            questions.
        level: coverage of the interval, strictly between 0 and 1.

    Returns:
        The difference and its interval; of b - a it is the same with the signs turned. With one seed it says
        nothing about another training run, and a stratum of one question adds nothing to its width.

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
    return _interval(first - second, strata, resamples, seed, level)


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
    return _interval(_scores(scores, "scores"), strata, resamples, seed, level)


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


def standard_error(effect: Interval, level: float = 0.95) -> float:
    """Return the standard error behind an interval: half width / t((1 + level) / 2, freedom).

    Args:
        effect: an interval, such as ``paired_difference`` returns.
        level: its coverage.

    Raises:
        ValueError: the estimate or a bound is not finite, the bounds are out of order, ``freedom`` is not
            positive, or the level is outside (0, 1).
    """
    _between(level, "level")
    finite = np.isfinite(effect[:3]).all()
    if not (finite and effect.low <= effect.high and effect.freedom > 0):
        raise ValueError(f"an interval needs a finite estimate and low <= high, not {tuple(effect)}")
    return effect.half_width / float(special.stdtrit(_capped(effect.freedom), (1 + level) / 2))


def p_value(
    effect: Interval, against: float = 0.0, alternative: Alternative = "two-sided", level: float = 0.95
) -> float:
    """Return the probability of an estimate at least this far from ``against`` if that were the truth.

    Student's t with the interval's own degrees of freedom: t = (estimate - against) / ``standard_error``.
    Two-sided, it falls below 1 - level where the interval, if symmetric, excludes ``against``.

    Args:
        effect: an interval, such as ``paired_difference`` returns.
        against: the value to be rejected.
        alternative: what is claimed of the truth: it differs from ``against``, is greater, or is less.
        level: coverage of the interval.

    Returns:
        A p-value in [0, 1]. An interval without width gives 1 where the estimate equals ``against``;
        elsewhere 0, or 1 where it lies on the side that is not claimed.

    Raises:
        ValueError: as ``standard_error``; ``against`` is not finite; or the alternative is unknown.
    """
    if alternative not in get_args(Alternative):
        known = ", ".join(get_args(Alternative))
        raise ValueError(f"alternative must be one of {known}, not {alternative!r}")
    if not math.isfinite(against):
        raise ValueError(f"against must be finite, not {against}")
    error, distance = standard_error(effect, level), effect.estimate - against
    if distance == 0 == error:
        return 1.0
    t = distance / error if error > 0 else math.copysign(math.inf, distance)
    freedom = _capped(effect.freedom)
    if alternative == "two-sided":
        return float(2 * special.stdtr(freedom, -abs(t)))
    return float(special.stdtr(freedom, -t if alternative == "greater" else t))


def minimum_detectable_effect(effect: Interval, level: float = 0.95, power: float = 0.8) -> float:
    """Return the smallest true difference that a two-sided test like this one finds with the given power.

    (t((1 + level) / 2) + t(power)) times the ``standard_error``, with t the quantile of Student's t at the
    interval's degrees of freedom.

    Args:
        effect: the interval of a comparison with the same design.
        level: its coverage, and 1 minus the size of the test.
        power: probability of finding the difference.

    Raises:
        ValueError: as ``standard_error``, or the power is outside (0, 1).
    """
    _between(power, "power")
    quantiles = special.stdtrit(_capped(effect.freedom), [(1 + level) / 2, power])
    return float(quantiles.sum() * standard_error(effect, level))


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


def _interval(scores: Array, strata: ArrayLike | None, resamples: int, seed: int, level: float) -> Interval:
    """The mean of ``(seeds, questions)`` between the bounds that the module docstring describes."""
    seeds, questions = scores.shape
    _between(level, "level")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    sizes = np.array([questions])
    if strata is not None:
        groups = np.asarray(strata)
        if groups.shape != (questions,):
            raise ValueError(f"strata must name one group a question: {(questions,)}, not {groups.shape}")
        _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        scores = scores[:, np.argsort(group, kind="stable")]

    estimate = float(scores.mean())
    effects, noise = _question_effects(scores, sizes)
    of_questions = float(effects @ effects) / questions**2
    of_seeds = float(scores.mean(axis=1).var(ddof=1)) / seeds if seeds > 1 else 0.0
    variance = max(of_seeds, noise) + of_questions
    if variance == 0:
        return Interval(estimate, estimate, estimate)
    # Without two seeds, or two questions in a stratum, the part without degrees of freedom is 0.
    generous = of_seeds * (seeds + 1) / max(seeds - 1, 1)
    share = generous / (generous + variance - of_seeds) if of_seeds else 0.0
    freedom = 1 / (share / max(seeds - 1, 1) + (1 - share) / max(questions - len(sizes), 1))
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    stretch = special.stdtrit(freedom, tails) / special.ndtri(tails)

    # A resample and its mirror image: with both, turning the signs of the scores turns the bounds exactly.
    rng = np.random.default_rng(seed)
    pairs = (resamples + 1) // 2
    drawn, mirrored = _resampled_means(effects, sizes, pairs, rng)
    # Evenly spaced quantiles in random order, not draws: so the seeds' part has no error of simulation.
    normal = math.sqrt(variance - of_questions) * rng.permutation(
        special.ndtri((np.arange(pairs) + 0.5) / pairs)
    )
    shifts = np.concatenate([drawn + normal, mirrored - normal])
    low, high = estimate + stretch * np.quantile(shifts, tails, method="hazen")
    return Interval(estimate, float(low), float(high), freedom)


def _question_effects(scores: Array, sizes: NDArray[np.int64]) -> tuple[Array, float]:
    """Return each question's distance from the mean of its stratum, free of noise, and the noise of the mean.

    Args:
        scores: ``(seeds, questions)``, the questions of a stratum side by side.
        sizes: questions per stratum, ``(strata,)``.

    Returns:
        Effects ``(questions,)``, scaled so that their sum of squares over questions^2 estimates, without bias
        but for the bound at 0, the variance of the mean over other questions of the same strata; and
        ``sigma_noise^2 / (S Q)``, 0 for one seed.
    """
    seeds, questions = scores.shape
    means = np.add.reduceat(scores, np.cumsum(sizes) - sizes, axis=1) / sizes
    # About the mean of n values the squares come out (n - 1) / n too small; a lone question shows no spread.
    scale = np.sqrt(sizes / np.maximum(sizes - 1, 1))
    centred = (scores - np.repeat(means, sizes, axis=1)) * np.repeat(scale, sizes)
    effects: Array = centred.mean(axis=0)
    if seeds == 1:
        return effects, 0.0
    noise = float(np.square(centred - effects).sum()) / (seeds * (seeds - 1))
    total = float(effects @ effects)
    shrunk = effects * math.sqrt(max(0.0, 1 - noise / total)) if total else effects
    return shrunk, noise / questions**2


def _resampled_means(
    effects: Array, sizes: NDArray[np.int64], resamples: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Stratified bootstrap means of ``(questions,)`` effects, and their mirror images, ``(resamples,)`` each.

    In each stratum the mirror image draws the k-th largest effect where the resample drew the k-th smallest.
    """
    drawn, mirrored = np.zeros(resamples), np.zeros(resamples)
    for stratum in np.split(effects, np.cumsum(sizes)[:-1]):
        ordered, size = np.sort(stratum), len(stratum)
        chunk = max(1, _CELLS_AT_ONCE // size)
        for first in range(0, resamples, chunk):
            here = slice(first, min(first + chunk, resamples))
            picks = rng.integers(size, size=(here.stop - first, size))
            drawn[here] += ordered.take(picks).sum(axis=1)
            mirrored[here] += ordered[::-1].take(picks).sum(axis=1)
    return drawn / len(effects), mirrored / len(effects)


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


def _capped(freedom: float) -> float:
    """Return degrees of freedom that scipy takes: for it infinity is no number, and this many are normal."""
    return min(freedom, 1e10)


def _between(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, not {value}")
