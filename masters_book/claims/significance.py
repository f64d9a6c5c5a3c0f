"""P-values, detectable effects and the correction for many claims, from intervals.

The intervals are those of :mod:`masters_book.claims.statistics`. All functions are pure: numbers in, numbers
out.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from masters_book.claims.statistics import TAILS, Array, Interval

Alternative = Literal["two-sided", "greater", "less"]
POWER = 0.8


def standard_error(effect: Interval) -> float:
    """Return the standard error behind an interval: half width / t(0.975, freedom).

    Raises:
        ValueError: the estimate or a bound is not finite, the bounds are out of order, or ``freedom`` is not
            positive.
    """
    finite = np.isfinite(effect[:3]).all()
    if not (finite and effect.low <= effect.high and effect.freedom > 0):
        raise ValueError(f"an interval needs a finite estimate and low <= high, not {tuple(effect)}")
    return (effect.high - effect.low) / 2 / float(special.stdtrit(_capped(effect.freedom), TAILS[1]))


def p_value(effect: Interval, against: float = 0.0, alternative: Alternative = "two-sided") -> float:
    """Return the probability of an estimate at least this far from ``against`` if that were the truth.

    Student's t with the interval's own degrees of freedom: t = (estimate - against) / ``standard_error``.
    Two-sided, it is below 0.05 where the interval, if symmetric, excludes ``against``.

    Args:
        effect: an interval, such as :func:`mean_interval` returns.
        against: the value to be rejected, in the units of ``effect``.
        alternative: what is claimed of the truth: it differs from ``against``, is greater, or is less.

    Returns:
        A p-value in [0, 1]. An interval without width gives 1 where the estimate equals ``against``;
        elsewhere 0, or 1 where it lies on the side that is not claimed.

    Raises:
        ValueError: as :func:`standard_error`.
    """
    error, distance = standard_error(effect), effect.estimate - against
    if distance == 0 == error:
        return 1.0
    t = distance / error if error > 0 else math.copysign(math.inf, distance)
    freedom = _capped(effect.freedom)
    if alternative == "two-sided":
        return float(2 * special.stdtr(freedom, -abs(t)))
    return float(special.stdtr(freedom, -t if alternative == "greater" else t))


def minimum_detectable_effect(effect: Interval) -> float:
    """Return the smallest true difference that a two-sided test like this one finds with a power of 0.8.

    (t(0.975) + t(0.8)) times the :func:`standard_error`, with t the quantile of Student's t at the interval's
    degrees of freedom. The test has level 0.05.

    Args:
        effect: the interval of a comparison with the same design.

    Raises:
        ValueError: as :func:`standard_error`.
    """
    quantiles = special.stdtrit(_capped(effect.freedom), [TAILS[1], POWER])
    return float(quantiles.sum() * standard_error(effect))


def holm(p_values: ArrayLike) -> Array:
    """Return Holm's step-down adjusted p-values, in the order given.

    Comparing each with alpha bounds the chance of one or more false positives among all of them by alpha,
    whatever their dependence.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    # Multiply the k-th smallest by how many are still untested; the maximum keeps the p-values in order.
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def power_law(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Return the exponent of ``y = c * x ** exponent`` and its standard error, from a line through the logs.

    Args:
        x: ``(points,)``, positive.
        y: ``(points,)``, positive.
    """
    line = stats.linregress(np.log(x), np.log(y))
    return float(line.slope), float(line.stderr)


def _capped(freedom: float) -> float:
    """Return degrees of freedom that scipy accepts: 1e10, which is normal, in place of infinity."""
    return min(freedom, 1e10)
