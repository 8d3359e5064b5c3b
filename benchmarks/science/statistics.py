"""The statistics of `make bench-science`: pure functions of paired seeds.

Runs of two methods with the same seed share initialisation and batches, so what is compared is seed by seed.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean over n seeds; `sd`, `low`, `high` and `p` are NaN of a single seed.

    Attributes:
        n: how many seeds.
        mean: of the seeds.
        sd: standard deviation (n - 1).
        low: lower end of the 95 % t interval of the mean.
        high: upper end.
        p: two-sided, of a mean of zero.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    p: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies above or below zero, 0 where it holds zero or there is none."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Ratio:
    """A ratio of two means with Fieller's 95 % set.

    Attributes:
        value: the ratio; NaN where the denominator's mean is 0.
        low: the set's lower end; of a disjoint set, the upper end of its lower part.
        high: the set's upper end; of a disjoint set, the lower end of its upper part.
        disjoint: the set is everything up to `low` and from `high` on: the denominator is not clear of zero. Without
            any bound, `low` and `high` are infinite and `disjoint` is False.
    """

    value: float
    low: float
    high: float
    disjoint: bool

    @property
    def bounded(self) -> bool:
        """Whether the set is an interval: whether the denominator is clear of zero."""
        return not self.disjoint and math.isfinite(self.low)

    def plus(self, constant: float) -> "Ratio":
        """Shift value and set."""
        return Ratio(self.value + constant, self.low + constant, self.high + constant, self.disjoint)


def mean_of(values: ArrayLike) -> Mean:
    """Return the mean over seeds with its t interval; of paired differences, that is the paired t-test.

    Args:
        values: (n,), n ≥ 1.
    """
    x = np.asarray(values, dtype=np.float64)
    n, mean = len(x), float(x.mean())
    if n == 1:
        return Mean(1, mean, math.nan, math.nan, math.nan, math.nan)
    sd = float(x.std(ddof=1))
    error = sd / math.sqrt(n)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    # Two ways to compute the same thing differ by exactly 0 on every seed.
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return Mean(n, mean, sd, mean - half, mean + half, p)


def fieller(numerator: ArrayLike, denominator: ArrayLike) -> Ratio:
    """Return the ratio of two means over the same seeds, with the 95 % set of Fieller (1954).

    The set holds each θ for which mean(numerator - θ · denominator) is not significantly different from 0 by a t-test.

    Args:
        numerator: (n,), n ≥ 2.
        denominator: (n,) of the same seeds.
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
    # With a > 0 only rounding makes it negative: θ = value always solves the inequality.
    root = math.sqrt(max(discriminant, 0))
    low, high = sorted((b + sign * root) / a for sign in (-1, 1))
    return Ratio(value, low, high, disjoint=a < 0)


def relative_gain(method: ArrayLike, other: ArrayLike, labels: ArrayLike) -> Ratio:
    """The paper's statistic: by how much a method's gain over labels-only is larger than another's; all (n,).

    (method - labels) / (other - labels) - 1
    """
    base = np.asarray(labels)
    return fieller(np.asarray(method) - base, np.asarray(other) - base).plus(-1)


def gap_closed(student: ArrayLike, labels: ArrayLike, teacher: float) -> Ratio:
    """The share that a student closes of the gap between labels-only and the teacher; the seeds are the students' (n,).

    (student - labels) / (teacher - labels)
    """
    base = np.asarray(labels)
    return fieller(np.asarray(student) - base, teacher - base)
