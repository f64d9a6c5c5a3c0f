"""How sure a comparison is: intervals, paired differences, and what the design could have seen at all.

One idea: two arms answer the same questions with the same seeds, so the score whose mean is estimated is
their difference, question by question and seed by seed. A result must hold for other questions and for other
training runs alike, so an interval counts both, and each once. With S seeds, Q questions and a score that is
a sum of seed effect, question effect and noise (two-way analysis of variance), the mean varies by::

    variance = sigma_seed^2 / S + sigma_question^2 / Q + sigma_noise^2 / (S Q)

* The means of the seeds vary by S times the first and the last term, so their standard error holds the noise.
* Questions are many and far from normal: their effects are resampled, a bootstrap within each stratum. The
  noise that is left in their means is there once already, so the effects are first shrunk by
  ``sqrt(max(0, 1 - MS_noise / MS_questions))``, a ratio of mean squares.
* Seeds are few: a bootstrap could only draw the few it was given. A normal variable with their standard
  error is added instead.
* The whole is then stretched by as much as Student's t is wider than the normal. Where the seeds make the
  share w of the variance, t has nu degrees of freedom with ``1 / nu = w / (S - 1) + (1 - w) / (Q - strata)``.
  (Satterthwaite weighs with w^2 and (1 - w)^2, which is too short here: where few seeds happen to lie close
  together it narrows the interval twice, by the variance and by the degrees of freedom.)

So where seeds alone vary it is the t interval, and with one seed it is nearly the ordinary bootstrap. With
three seeds or more a 95 % interval covers the truth in 93 to 97 % of experiments, whatever varies most:
``tests/test_statistics.py`` simulates them.

What the interval is not: with one seed it speaks about other questions only, never about another training
run. With two, which chance may bring close together, it may cover only 90 %; with three it is honest but
wide, for t is. The effects of the seeds are taken to be about normal.

Departures from the paper: it reports single runs and no spread, so everything here is an addition.

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
    """The mean of a - b with an interval over seeds and questions together: a stratified bootstrap of the
    questions, Student's t for the seeds.

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
    """The standard error of a normal estimate with so wide an interval: half width / z((1 + level) / 2).

    With few seeds it is larger than the standard deviation of the estimate, since the interval allows for
    how badly few seeds tell it.

    Args:
        effect: an interval, as of ``paired_difference``.
        level: the coverage with which it was made.

    Raises:
        ValueError: the estimate or a bound is not finite, the bounds are out of order, or the level is
            outside (0, 1).
    """
    _between(level, "level")
    if not (np.isfinite(effect).all() and effect.low <= effect.high):
        raise ValueError(f"an interval needs a finite estimate and low <= high, not {tuple(effect)}")
    return effect.half_width / float(special.ndtri((1 + level) / 2))


def p_value(
    effect: Interval, against: float = 0.0, alternative: Alternative = "two-sided", level: float = 0.95
) -> float:
    """The chance of an estimate at least so far from ``against`` if that were the truth.

    A normal approximation: z = (estimate - against) / ``standard_error``. Two-sided it falls below 1 - level
    where the interval, if symmetric, leaves ``against`` out, and there it is as good as the interval. With
    few seeds far smaller p-values are too small, for the tails of Student's t are longer: to reject at alpha,
    as after ``holm``, make the interval at a level near 1 - alpha.

    Args:
        effect: an interval, as of ``paired_difference``.
        against: the value that is to be rejected.
        alternative: what is claimed of the truth: it differs from ``against``, is greater, or is less.
        level: the coverage with which the interval was made.

    Returns:
        A p-value in [0, 1]. An interval without width gives 1 where the estimate equals ``against``;
        elsewhere 0, or 1 where it lies on the side that is not claimed.

    Raises:
        ValueError: as ``standard_error``, ``against`` is not finite, or another alternative.
    """
    if alternative not in get_args(Alternative):
        known = ", ".join(get_args(Alternative))
        raise ValueError(f"alternative must be one of {known}, not {alternative!r}")
    if not math.isfinite(against):
        raise ValueError(f"against must be finite, not {against}")
    error, distance = standard_error(effect, level), effect.estimate - against
    if distance == 0 == error:
        return 1.0
    z = distance / error if error > 0 else math.copysign(math.inf, distance)
    if alternative == "two-sided":
        return float(2 * special.ndtr(-abs(z)))
    return float(special.ndtr(-z if alternative == "greater" else z))


def minimum_detectable_effect(standard_error: float, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided test would find with the given power.

    (z((1 + level) / 2) + z(power)) times the standard error, with z the normal quantile. For a comparison
    that was made, pass its ``standard_error``.

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
    effects = _question_effects(scores, sizes)
    of_questions = float(effects @ effects) / questions**2
    of_seeds = float(scores.mean(axis=1).var(ddof=1)) / seeds if seeds > 1 else 0.0
    if of_seeds + of_questions == 0:
        return Interval(estimate, estimate, estimate)
    # Without two seeds, or two questions in a stratum, the part that has no degrees of freedom is 0.
    freedom = (of_seeds + of_questions) / (
        of_seeds / max(seeds - 1, 1) + of_questions / max(questions - len(sizes), 1)
    )
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    stretch = special.stdtrit(freedom, tails) / special.ndtri(tails)

    # A resample and its mirror image: with both, turning the signs of the scores turns the bounds exactly.
    rng = np.random.default_rng(seed)
    pairs = (resamples + 1) // 2
    drawn, mirrored = _resampled_means(effects, sizes, pairs, rng)
    # Evenly spaced quantiles in random order, not draws: so the seeds' part has no error of simulation.
    normal = math.sqrt(of_seeds) * rng.permutation(special.ndtri((np.arange(pairs) + 0.5) / pairs))
    shifts = np.concatenate([drawn + normal, mirrored - normal])
    low, high = estimate + stretch * np.quantile(shifts, tails, method="hazen")
    return Interval(estimate, float(low), float(high))


def _question_effects(scores: Array, sizes: NDArray[np.int64]) -> Array:
    """How far each question lies from the mean of its stratum, without the noise of its seeds.

    Args:
        scores: ``(seeds, questions)``, the questions of a stratum side by side.
        sizes: how many questions each stratum has, ``(strata,)``.

    Returns:
        ``(questions,)``, scaled so that the sum of squares over questions^2 estimates, without bias but for
        the bound at 0, the variance of the mean over other questions of the same strata.
    """
    seeds = len(scores)
    means = np.add.reduceat(scores, np.cumsum(sizes) - sizes, axis=1) / sizes
    # About the mean of n values the squares come out (n - 1) / n too small; a lone question shows no spread.
    scale = np.sqrt(sizes / np.maximum(sizes - 1, 1))
    centred = (scores - np.repeat(means, sizes, axis=1)) * np.repeat(scale, sizes)
    effects: Array = centred.mean(axis=0)
    total = float(effects @ effects)
    if seeds == 1 or total == 0:
        return effects
    noise = float(np.square(centred - effects).sum()) / (seeds * (seeds - 1))
    return effects * math.sqrt(max(0.0, 1 - noise / total))


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


def _between(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, not {value}")
