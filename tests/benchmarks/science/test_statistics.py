import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.science.statistics import Ratio, fieller, gap_closed, mean_of, relative_gain
from iusp.device.drift import holm


def test_mean_by_hand() -> None:
    one = mean_of([1.0, 2.0, 3.0, 4.0])
    # sd² = 5/3, standard error = √(5/12), t(3) = 3.182446 of any table.
    assert (one.n, one.mean, one.sd) == (4, 2.5, pytest.approx(math.sqrt(5 / 3)))
    assert one.low == pytest.approx(2.5 - 3.182446 * math.sqrt(5 / 12), abs=1e-6)
    assert one.high == pytest.approx(2.5 + 3.182446 * math.sqrt(5 / 12), abs=1e-6)
    assert one.p == pytest.approx(stats.ttest_1samp([1, 2, 3, 4], 0).pvalue)
    assert (one.sign, mean_of([-1.0, -2, -3, -4]).sign, mean_of([-1.0, 2]).sign) == (1, -1, 0)


def test_mean_without_spread() -> None:
    assert math.isnan(mean_of([0.3]).low)
    assert mean_of([0.3]).sign == 0
    assert (mean_of([0.0, 0.0]).p, mean_of([0.25, 0.25]).p) == (1, 0)


def test_mean_covers() -> None:
    draws = np.random.default_rng(1).normal(0.7, 2, (4000, 5))
    covered = np.mean([one.low <= 0.7 <= one.high for one in map(mean_of, draws)])
    assert covered == pytest.approx(0.95, abs=0.011)


def test_holm_by_hand() -> None:
    # Sorted: 0.005 · 4, 0.01 · 3, 0.03 · 2, 0.04 · 1; none below the one before; at most 1.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1, 1]
    corrected = holm([math.nan, 0.02, 0.03])
    assert math.isnan(corrected[0])
    assert corrected[1:] == pytest.approx([0.04, 0.04])
    assert holm([]) == []


def test_holm_keeps_the_familywise_error() -> None:
    families = np.random.default_rng(2).uniform(size=(4000, 8))
    assert np.mean([min(holm(family)) < 0.05 for family in families]) == pytest.approx(0.05, abs=0.011)


def holds(ratio: Ratio, theta: float) -> bool:
    """Whether a Fieller set holds a value."""
    inside = ratio.low <= theta <= ratio.high
    return theta <= ratio.low or theta >= ratio.high if ratio.disjoint else inside


@pytest.mark.parametrize("gain", [0.0, 0.3, 1.0, 4.0])
def test_fieller_is_the_t_test_turned_round(gain: float) -> None:
    generator = np.random.default_rng(3)
    kinds = set()
    for _ in range(30):
        y = generator.normal(gain, 1, 5)
        x = 1.5 * y + generator.normal(0, 1, 5)
        ratio = fieller(x, y)
        kinds.add("interval" if ratio.bounded else "disjoint" if ratio.disjoint else "all")
        for theta in np.linspace(-7, 9, 33):
            assert holds(ratio, theta) == (stats.ttest_1samp(x - theta * y, 0).pvalue >= 0.05)
    assert kinds == {0.0: {"interval", "disjoint", "all"}, 4.0: {"interval"}}.get(gain, kinds)


@pytest.mark.parametrize("gain", [0.5, 3.0])
def test_fieller_covers(gain: float) -> None:
    generator = np.random.default_rng(4)
    covered = []
    for _ in range(4000):
        shared = generator.normal(0, 1, 5)
        y, x = gain + shared + generator.normal(0, 1, 5), 2 * gain + shared + generator.normal(0, 1, 5)
        covered.append(holds(fieller(x, y), 2))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.011)


def test_fieller_of_equal_and_of_no_gains() -> None:
    assert fieller([1, 2, 3], [1, 2, 3]) == fieller([2, 4, 6], [2, 4, 6])
    equal = fieller([0.1, 0.11, 0.13], [0.1, 0.11, 0.13])
    assert (equal.value, equal.low, equal.high) == (1, pytest.approx(1, abs=1e-6), pytest.approx(1, abs=1e-6))
    nothing = fieller([0.1, 0.2], [0.0, 0.0])
    assert math.isnan(nothing.value)
    assert not nothing.bounded


def test_ratios_by_hand() -> None:
    labels, sp, iusp = np.array([[0.5, 0.6], [0.52, 0.64], [0.55, 0.67]])
    # IUSP gains 0.05 and 0.07, SP 0.02 and 0.04: 0.06 / 0.03 - 1.
    assert relative_gain(iusp, sp, labels).value == pytest.approx(1)
    # 0.06 of gaps of 0.3 and 0.2.
    assert gap_closed(iusp, labels, 0.8).value == pytest.approx(0.06 / 0.25)
