"""Confidence intervals over seeds and questions.

Two arms answer the same questions with the same seeds. The quantity of interest is the mean of their
difference over questions and seeds. A result should hold for other questions and for other training runs, so
the interval covers both, and counts each once. With S seeds, Q questions and a score that is the sum of a
seed effect, a question effect and noise (two-way analysis of variance), the variance of the mean is::

    variance = sigma_seed^2 / S + sigma_question^2 / Q + sigma_noise^2 / (S Q)

* The variance between the seeds' means estimates the first and the last term together. Their sum cannot be
  smaller than the last term, which S Q answers estimate well. So the estimate is at least
  ``sigma_noise^2 / (S Q)``. Without this floor, seeds that happen to agree give an interval that is far too
  narrow.
* There are many questions, and their effects are not normal, so they are resampled (a bootstrap within each
  stratum). Before that they are shrunk by ``sqrt(max(0, 1 - MS_noise / MS_questions))``, a ratio of mean
  squares, because the noise left in their means is counted already.
* There are few seeds, and a bootstrap could only draw those few. Instead, a normal variable with their
  standard error is added.
* Few seeds also estimate their own variance poorly, so the interval is widened by the ratio of the quantiles
  of Student's t and the normal. Let V_s be the variance between the seeds' means over S, without the floor,
  and rest the variance minus V_s. The degrees of freedom nu are::

      1 / nu = u / (S - 1) + (1 - u) / (Q - strata),  u = g V_s / (g V_s + rest),  g = (S + 1) / (S - 1)

  The factor g allows for a V_s that is small by chance: with nu from V_s itself (g = 1), a test at
  level 0.05 / 14 with three seeds rejects a true hypothesis 3.6 times too often. (Satterthwaite's formula
  weights with the squares of the shares and is further off.)

Questions about one picture are not independent. So what is called a question here is, for a comparison, the
mean over the questions about a picture (:mod:`masters_book.claims.comparisons`).

Where only seeds vary, this is the t interval; with one seed it is nearly the ordinary bootstrap.
``tests/claims/test_statistics.py`` simulates, for three to ten seeds, the coverage and the size of tests at
0.05 and at 0.05 / 14: coverage is at least nominal, and clearly higher where noise dominates.

With one seed an interval covers other questions only, never another training run. With two seeds its coverage
may be only 90 %. Seed effects are assumed to be approximately normal.

Departures from the paper: it reports single runs without spread, so all of this is an addition.

All functions are pure: arrays in, numbers out.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]

LEVEL = 0.95  # coverage of every interval
RESAMPLES = 2000
TAILS = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
# Question effects drawn at a time, which bounds memory and fits the processor's cache.
_CELLS_AT_ONCE = 1 << 18


class Interval(NamedTuple):
    """An estimate with its 95 % interval, in the units of the scores.

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


def mean_interval(
    scores: ArrayLike, strata: ArrayLike | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return the mean score with its interval over seeds and questions.

    Combines a stratified bootstrap of the questions with Student's t for the seeds; see the top of the
    module. To compare two arms, take the differences of their scores: overlapping intervals of two means
    decide nothing. Scores of the opposite sign give the mirrored interval.

    Args:
        scores: ``(seeds, questions)``.
        strata: the group of each question, such as its task, ``(questions,)``; every resample then has as
            many questions of each group as the data. The mean stays the mean over all questions.
        resamples: bootstrap resamples, drawn as mirrored pairs (an odd number is rounded up).
        seed: seed of the resampling. Equal arguments give equal intervals, whatever the order of the
            questions.

    Returns:
        The mean and its interval. With one seed it does not cover other training runs. A stratum of one
        question adds nothing to its width.

    Raises:
        ValueError: the shape is not ``(seeds, questions)``, a score is not finite, or ``strata`` has another
            length.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"scores must be (seeds, questions) with at least one of each, not {scores.shape}")
    if bad := int((~np.isfinite(scores)).sum()):
        raise ValueError(f"{bad} scores are NaN or infinite; drop or judge them first")
    seeds, questions = scores.shape
    sizes = np.array([questions])
    if strata is not None:
        groups = np.asarray(strata)
        if groups.shape != (questions,):
            raise ValueError(f"strata must name one group per question: {(questions,)}, not {groups.shape}")
        _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        scores = scores[:, np.argsort(group, kind="stable")]

    estimate = float(scores.mean())
    effects, noise_variance = _question_effects(scores, sizes)
    question_variance = float(effects @ effects) / questions**2
    seed_variance = float(scores.mean(axis=1).var(ddof=1)) / seeds if seeds > 1 else 0.0
    variance = max(seed_variance, noise_variance) + question_variance
    if variance == 0:
        return Interval(estimate, estimate, estimate)
    # With one seed, or one question in every stratum, the term without degrees of freedom is 0.
    raised = seed_variance * (seeds + 1) / max(seeds - 1, 1)
    seed_share = raised / (raised + variance - seed_variance) if seed_variance else 0.0
    freedom = 1 / (seed_share / max(seeds - 1, 1) + (1 - seed_share) / max(questions - len(sizes), 1))
    stretch = special.stdtrit(freedom, TAILS) / special.ndtri(TAILS)

    # With each resample and its mirror image, changing the sign of the scores exactly swaps the bounds.
    rng = np.random.default_rng(seed)
    pairs = (resamples + 1) // 2
    drawn, mirrored = _resampled_means(effects, sizes, pairs, rng)
    # Evenly spaced quantiles in random order instead of draws: the seeds' term has no simulation error.
    normal = math.sqrt(variance - question_variance) * rng.permutation(
        special.ndtri((np.arange(pairs) + 0.5) / pairs)
    )
    shifts = np.concatenate([drawn + normal, mirrored - normal])
    low, high = estimate + stretch * np.quantile(shifts, TAILS, method="hazen")
    return Interval(estimate, float(low), float(high), freedom)


def _question_effects(scores: Array, sizes: NDArray[np.int64]) -> tuple[Array, float]:
    """Return each question's distance from the mean of its stratum, free of noise, and the noise of the mean.

    Args:
        scores: ``(seeds, questions)``, sorted by stratum.
        sizes: questions per stratum, ``(strata,)``.

    Returns:
        Effects ``(questions,)``, scaled so that their sum of squares over questions^2 estimates, without bias
        but for the bound at 0, the variance of the mean over other questions of the same strata; and
        ``sigma_noise^2 / (S Q)``, 0 for one seed.
    """
    seeds, questions = scores.shape
    means = np.add.reduceat(scores, np.cumsum(sizes) - sizes, axis=1) / sizes
    # Squares around the mean of n values are too small by (n - 1) / n; a single question shows no spread.
    scale = np.sqrt(sizes / np.maximum(sizes - 1, 1))
    centered = (scores - np.repeat(means, sizes, axis=1)) * np.repeat(scale, sizes)
    effects: Array = centered.mean(axis=0)
    if seeds == 1:
        return effects, 0.0
    noise = float(np.square(centered - effects).sum()) / (seeds * (seeds - 1))
    total = float(effects @ effects)
    shrunk = effects * math.sqrt(max(0.0, 1 - noise / total)) if total else effects
    return shrunk, noise / questions**2


def _resampled_means(
    effects: Array, sizes: NDArray[np.int64], resamples: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return bootstrap means of ``(questions,)`` effects and their mirror images, ``(resamples,)`` each.

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
