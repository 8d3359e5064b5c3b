"""Whether numbers that a network gives, or is given, are still distributed as they were: pure functions.

Two questions are asked of each column of numbers. Is the change larger than chance would have it? The two-sample
Kolmogorov–Smirnov test answers, corrected for the number of columns after Holm (Scandinavian Journal of Statistics 6,
1979). Is it large enough to matter? The population stability index answers. A column has drifted if both say so: with
many clips the test alone sees what nobody needs to know, with few clips the index alone is large by chance (it is about
(1/n + 1/m) χ² with one degree of freedom less than bins; Yurdakul and Naranjo, Journal of Risk Model Validation 14,
2020).
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
    """Some numbers, in short.

    Attributes:
        count: how many.
        mean: their mean.
        quantiles: those of `QUANTILES`.
        above: share that is at least the threshold; None where there is no threshold.
    """

    count: int
    mean: float
    quantiles: tuple[float, ...]
    above: float | None


@dataclass(frozen=True)
class Drift:
    """One column, then and now.

    Attributes:
        column: its name.
        threshold: from which on a tag is taken for present; None for what is no tag.
        reference: the numbers then.
        new: the numbers now.
        psi: population stability index.
        ks: Kolmogorov–Smirnov statistic, the largest difference of the two distribution functions.
        p_value: of the test, after Holm's correction.
        drifted: whether psi and p_value both say so.
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
    """Return Σ (q − p) ln(q / p) over bins that hold a tenth of the reference each; p then, q now.

    A value that is more than a tenth of the reference has a bin of its own. Half a count is added to each bin, so that
    an empty one is not infinite.

    Args:
        reference: (N,), N ≥ 1.
        new: (M,), M ≥ 1.
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
    """Correct the p values of one family for their number (Holm, 1979); a NaN stays NaN and does not count.

    The chance of any false alarm is then at most what the corrected values are compared with.
    """
    p = np.array(p_values, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
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
    """Compare the columns that are in both, in the reference's order.

    Args:
        reference: (N,) by column.
        new: (M,) by column.
        thresholds: by tag.
        psi_limit: index from which on a change matters.
        alpha: largest chance of a false alarm in any column.
    """
    columns = [column for column in reference if column in new]
    with warnings.catch_warnings():
        # The exact p-value may be too small to be computed; scipy says so, and takes the asymptotic one.
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
