"""Drift: whether inputs or outputs of a network still have the same distribution. Pure functions.

Each column of numbers is tested twice. The two-sample Kolmogorov–Smirnov test tells whether a change is larger than
chance, corrected for the number of columns by Holm's method (Scandinavian Journal of Statistics 6, 1979). The
population stability index tells whether the change is large enough to matter. A column has drifted if both say so.
With many clips, the test alone detects irrelevant changes. With few clips, the index alone is large by chance: it is
about (1/n + 1/m) χ² with one degree of freedom less than bins (Yurdakul and Naranjo, Journal of Risk Model Validation
14, 2020).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

BINS = 10
QUANTILES = (0.1, 0.5, 0.9)
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """Summary statistics of a column.

    Attributes:
        count: number of values.
        mean: mean of the values.
        quantiles: the quantiles in `QUANTILES`.
        above: share of values that reach the threshold; None if there is no threshold.
    """

    count: int
    mean: float
    quantiles: tuple[float, ...]
    above: float | None


@dataclass(frozen=True)
class Drift:
    """The comparison of one column with the reference.

    Attributes:
        column: name of the column.
        threshold: score from which on the tag is present; None if the column is not a tag.
        reference: summary of the reference.
        new: summary of the new values.
        psi: population stability index.
        ks: Kolmogorov–Smirnov statistic, the largest difference of the two distribution functions.
        p_value: p value of the test, after Holm's correction.
        drifted: whether both psi and p_value exceed their limits.
    """

    column: str
    threshold: float | None
    reference: Summary
    new: Summary
    psi: float
    ks: float
    p_value: float
    drifted: bool


def population_stability_index(reference: Numbers, new: Numbers) -> float:
    """Return Σ (q − p) ln(q / p) over bins with a tenth of the reference each.

    p is the share of the reference in a bin, q the share of the new values. A value that makes up more than a tenth of
    the reference gets its own bin. Half a count is added to each bin, so that an empty bin does not give infinity.

    Args:
        reference: values of the reference (N,), N ≥ 1.
        new: new values (M,), M ≥ 1.
    """
    deciles = np.quantile(reference, np.arange(1, BINS) / BINS, method="inverted_cdf")
    values, counts = np.unique(deciles, return_counts=True)
    edges = np.union1d(values, np.nextafter(values[counts > 1], -np.inf))
    shares = []
    for numbers in (reference, new):
        inside = np.bincount(np.searchsorted(edges, numbers), minlength=len(edges) + 1) + 0.5
        shares.append(inside / inside.sum())
    p, q = shares
    return float(np.sum((q - p) * np.log(q / p)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for the number of tests (Holm, 1979); a NaN stays NaN and does not count.

    If the corrected values are compared with alpha, the probability of any false alarm is at most alpha.
    """
    p = np.array(p_values, dtype=np.float64)
    valid = np.flatnonzero(~np.isnan(p))
    order = valid[np.argsort(p[valid], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    p[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(value) for value in p]


def compare(
    reference: Mapping[str, Numbers],
    new: Mapping[str, Numbers],
    thresholds: Mapping[str, float],
    psi_limit: float,
    alpha: float,
) -> list[Drift]:
    """Compare the columns that both tables have, in the reference's order.

    Args:
        reference: values of the reference (N,) by column.
        new: new values (M,) by column.
        thresholds: threshold of each tag.
        psi_limit: population stability index from which on a change matters.
        alpha: largest probability of a false alarm in any column.
    """
    columns = [column for column in reference if column in new]
    with warnings.catch_warnings():
        # If the exact p value is too small to compute, scipy warns and uses the asymptotic one.
        warnings.simplefilter("ignore", RuntimeWarning)
        tests = [ks_2samp(reference[column], new[column]) for column in columns]
    p_values = holm([float(test.pvalue) for test in tests])
    result = []
    for column, test, p_value in zip(columns, tests, p_values, strict=True):
        psi = population_stability_index(reference[column], new[column])
        threshold = thresholds.get(column)
        then, now = (_summary(numbers[column], threshold) for numbers in (reference, new))
        drifted = psi >= psi_limit and p_value <= alpha
        result.append(Drift(column, threshold, then, now, psi, float(test.statistic), p_value, drifted))
    return result


def _summary(numbers: Numbers, threshold: float | None) -> Summary:
    above = None if threshold is None else float(np.mean(numbers >= threshold))
    return Summary(len(numbers), float(numbers.mean()), tuple(np.quantile(numbers, QUANTILES).tolist()), above)
