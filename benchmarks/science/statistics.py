"""Statistics over paired seeds, as pure functions.

Two runs with the same seed start from the same weights and see the same batches, so methods are compared seed by seed.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean over n seeds. With a single seed, `sd`, `low`, `high` and `p` are NaN.

    Attributes:
        n: number of seeds.
        mean: mean over the seeds.
        sd: standard deviation over the seeds (divisor n - 1).
        low: lower end of the 95 % t interval of the mean.
        high: upper end of that interval.
        p: two-sided p-value of the hypothesis that the mean is zero.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    p: float

    @property
    def sign(self) -> int:
        """1 if the interval is above zero, -1 if it is below, 0 if it includes zero or does not exist."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Ratio:
    """A ratio of two means with Fieller's 95 % confidence set.

    Attributes:
        value: the ratio; NaN if the mean of the denominator is 0.
        low: lower end of the set; if the set is disjoint, the upper end of its lower part.
        high: upper end of the set; if the set is disjoint, the lower end of its upper part.
        disjoint: whether the set consists of everything up to `low` and everything from `high` on. That happens if the
            interval of the denominator includes zero. A set without any bound has infinite ends and is not disjoint.
    """

    value: float
    low: float
    high: float
    disjoint: bool

    @property
    def bounded(self) -> bool:
        """Whether the set is an interval, which it is if the interval of the denominator excludes zero."""
        return not self.disjoint and math.isfinite(self.low)

    def plus(self, constant: float) -> "Ratio":
        """Add a constant to the value and to both ends."""
        return Ratio(self.value + constant, self.low + constant, self.high + constant, self.disjoint)


def mean_of(values: ArrayLike) -> Mean:
    """Return the mean over seeds with its t interval. Applied to paired differences, this is the paired t-test.

    Args:
        values: one value for each seed (n,), n ≥ 1.
    """
    x = np.asarray(values, dtype=np.float64)
    n, mean = len(x), float(x.mean())
    if n == 1:
        return Mean(1, mean, math.nan, math.nan, math.nan, math.nan)
    sd = float(x.std(ddof=1))
    error = sd / math.sqrt(n)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    # Two implementations of the same method differ by exactly 0 on every seed.
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return Mean(n, mean, sd, mean - half, mean + half, p)


def fieller(numerator: ArrayLike, denominator: ArrayLike) -> Ratio:
    """Return the ratio of two means over the same seeds, with the 95 % confidence set of Fieller (1954).

    The set holds each θ for which a t-test does not reject mean(numerator - θ · denominator) = 0.

    Args:
        numerator: one value for each seed (n,), n ≥ 2.
        denominator: one value for each of the same seeds (n,).
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (numerator, denominator))
    n = len(x)
    mean_x, mean_y = float(x.mean()), float(y.mean())
    covariance: NDArray[np.float64] = np.cov(x, y) * (float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) ** 2 / n)
    # (mean_x - θ mean_y)² ≤ t² var(mean_x - θ mean_y) is a θ² - 2 b θ + c ≤ 0.
    a = mean_y**2 - float(covariance[1, 1])
    b = mean_x * mean_y - float(covariance[0, 1])
    c = mean_x**2 - float(covariance[0, 0])
    discriminant = b**2 - a * c
    value = mean_x / mean_y if mean_y else math.nan
    if a == 0 or (a < 0 and discriminant < 0):
        return Ratio(value, -math.inf, math.inf, disjoint=False)
    # With a > 0 the discriminant is negative only by rounding, because θ = value solves the inequality.
    root = math.sqrt(max(discriminant, 0))
    low, high = sorted((b + sign * root) / a for sign in (-1, 1))
    return Ratio(value, low, high, disjoint=a < 0)


def relative_gain(method: ArrayLike, other: ArrayLike, labels: ArrayLike) -> Ratio:
    """Return the paper's statistic: by how much the gain of one method over labels exceeds that of another.

    (method - labels) / (other - labels) - 1

    Args:
        method: scores of the method, one for each seed (n,).
        other: scores of the other method (n,).
        labels: scores of training on labels alone (n,).
    """
    base = np.asarray(labels)
    return fieller(np.asarray(method) - base, np.asarray(other) - base).plus(-1)


def gap_closed(student: ArrayLike, labels: ArrayLike, teacher: float) -> Ratio:
    """Return the share of the gap between labels alone and the teacher that a student closes.

    (student - labels) / (teacher - labels)

    Args:
        student: scores of the student, one for each seed (n,).
        labels: scores of training on labels alone (n,).
        teacher: score of the one teacher.
    """
    base = np.asarray(labels)
    return fieller(np.asarray(student) - base, teacher - base)
