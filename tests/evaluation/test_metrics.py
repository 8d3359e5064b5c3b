import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import iusp
from iusp.data.taxonomy import read_taxonomy
from iusp.evaluation.metrics import Scores, bootstrap, confusion, curves, interval, level_tags, score

pytestmark = pytest.mark.filterwarnings("error")

TAXONOMY = read_taxonomy(Path(iusp.__file__).with_name("data") / "taxonomy.yaml")
LEVELS = ("coarse", "fine")
ANY_LEVEL = pytest.mark.parametrize("level", LEVELS)


def naive_counts(t, t0, y, y0):
    """TP, FP and FN of one clip, as the metric's definition words them."""
    pairs = list(zip(t, y, strict=True))
    matched = any(a and b for a, b in pairs)
    return (
        sum(a and b for a, b in pairs) + (t0 and (any(y) or y0) and not matched),
        (not t0) * sum(b and not a for a, b in pairs) + (not t0 and not any(t) and y0 and not all(y)),
        sum(a and not b for a, b in pairs) + (t0 and not any(t) and not (any(y) or y0)),
    )


def naive_precision_recall(counts):
    tp, fp, fn = counts
    return tp / max(tp + fp, 0.5), tp / max(tp + fn, 0.5)


def naive_area(table):
    points = [naive_precision_recall(counts) for counts in table]
    order = np.argsort([recall for _, recall in points])
    points = [(1, 0), *(points[index] for index in order), (0, 1)]
    return sum((r1 - r0) * (p0 + p1) / 2 for (p0, r0), (p1, r1) in pairwise(points))


def naive_score(truth, scores, level):
    """The metric, threshold by threshold and clip by clip."""
    tags = level_tags(TAXONOMY, level)
    truth = [dict(zip(tags, map(bool, row), strict=True)) for row in truth]
    scores = [dict(zip(tags, map(float, row), strict=True)) for row in scores]
    tables = {}
    for category, tag in TAXONOMY.coarse.items():
        complete = [tag] if level == "coarse" else TAXONOMY.fine[category]
        uncertain = TAXONOMY.uncertain.get(category)
        thresholds = {row[name] for row in scores for name in complete if row[name] >= 0.01} | {1.0}
        tables[category] = {
            threshold: np.sum(
                [
                    naive_counts(
                        [t[name] for name in complete],
                        t.get(uncertain, False),
                        [s[name] >= threshold for name in complete],
                        s.get(uncertain, 0) >= threshold,
                    )
                    for t, s in zip(truth, scores, strict=True)
                ],
                axis=0,
            )
            for threshold in sorted(thresholds, reverse=True)
        }
    pooled = {
        tau: sum(table[min(threshold for threshold in table if threshold >= tau)] for table in tables.values())
        for tau in sorted({threshold for table in tables.values() for threshold in table})
    }
    precision, recall = naive_precision_recall(pooled[min(tau for tau in pooled if tau >= 0.5)])
    classwise = {category: naive_area(table.values()) for category, table in tables.items()}
    return Scores(
        micro_auprc=naive_area(pooled.values()),
        micro_f1=2 / (1 / precision + 1 / recall) if precision else 0,
        macro_auprc=sum(classwise.values()) / len(classwise),
        classwise=classwise,
        absent=[category for category, table in tables.items() if not table[min(table)][0] + table[min(table)][2]],
    )


def values(scores):
    return [scores.micro_auprc, scores.micro_f1, scores.macro_auprc, *scores.classwise.values()]


def random_case(level, clips, seed, decimals=16):
    """Truth, and scores that know something of it."""
    generator = np.random.default_rng(seed)
    truth = generator.random((clips, len(level_tags(TAXONOMY, level)))) < 0.3
    return truth, (0.6 * generator.random(truth.shape) + 0.4 * truth).round(decimals)


@st.composite
def cases(draw):
    level = draw(st.sampled_from(LEVELS))
    shape = (draw(st.integers(1, 6)), len(level_tags(TAXONOMY, level)))
    truth = draw(arrays(bool, shape) | st.booleans().map(lambda value: np.full(shape, value)))
    tied = st.sampled_from([0, 0.005, 0.01, 0.3, 0.5, 0.7, 1])
    scores = draw(arrays(float, shape, elements=st.floats(0, 1)) | arrays(float, shape, elements=tied))
    return level, truth, scores


@settings(deadline=None, max_examples=400)
@given(cases())
def test_equals_the_naive_twin(case):
    level, truth, scores = case
    assert values(score(truth, scores, TAXONOMY, level)) == pytest.approx(
        values(naive_score(truth, scores, level)), abs=1e-12
    )


@ANY_LEVEL
@pytest.mark.parametrize("decimals", [16, 2, 1])
def test_equals_the_naive_twin_on_more_clips(level, decimals):
    truth, scores = random_case(level, clips=60, seed=decimals, decimals=decimals)
    assert values(score(truth, scores, TAXONOMY, level)) == pytest.approx(
        values(naive_score(truth, scores, level)), abs=1e-12
    )


@pytest.mark.parametrize(
    ("t0", "t", "y", "y0", "expected"),
    [
        (1, "11", "10", 0, (1, 0, 1)),
        (1, "00", "11", 0, (1, 0, 0)),
        (1, "00", "00", 0, (0, 0, 1)),
        (1, "10", "00", 0, (0, 0, 1)),
        (1, "10", "01", 0, (1, 0, 1)),
        (0, "00", "00", 1, (0, 1, 0)),
        (0, "00", "11", 1, (0, 2, 0)),
        (0, "00", "10", 1, (0, 2, 0)),
        (0, "10", "00", 1, (0, 0, 1)),
    ],
)
def test_the_cases_of_the_definition(t0, t, y, y0, expected):
    truth, predicted = (np.array([*map(int, known), x], bool) for known, x in ((t, t0), (y, y0)))
    assert tuple(confusion(truth, predicted)) == expected
    assert naive_counts(truth[:-1], t0, predicted[:-1], y0) == expected


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("coarse", (0.35418764275407416, 0.5242718446601942, 0.36064095303181853)),
        ("fine", (0.4821915688115945, 0.6108714408973253, 0.45058832901539214)),
    ],
)
def test_frozen_numbers(level, expected):
    # Every threshold finds a further positive: no recall occurs twice, so no sorting can change the numbers.
    generator = np.random.default_rng(2019)
    truth = generator.random((60, len(level_tags(TAXONOMY, level)))) < 0.4
    scores = np.clip(generator.integers(0, 5, truth.shape) + truth, 1, 4) / 5
    assert all((np.diff(curve.recall[1:-1]) > 0).all() for curve in curves(truth, scores, TAXONOMY, level).values())
    result = score(truth, scores, TAXONOMY, level)
    assert (result.micro_auprc, result.micro_f1, result.macro_auprc) == pytest.approx(expected, abs=1e-12)


@ANY_LEVEL
def test_perfect_and_useless_scores(level):
    truth = np.ones((4, len(level_tags(TAXONOMY, level))), bool)
    truth[:2] = False
    perfect = score(truth, truth.astype(float), TAXONOMY, level)
    assert values(perfect) == [1] * 11
    assert list(perfect.classwise) == list("12345678")
    useless = score(truth, np.zeros(truth.shape), TAXONOMY, level)
    assert values(useless) == [0] * 11


@ANY_LEVEL
def test_category_without_positives_scores_zero(level):
    truth, scores = random_case(level, clips=30, seed=0)
    truth[:, [tag.startswith("8") for tag in level_tags(TAXONOMY, level)]] = False
    found = score(truth, scores, TAXONOMY, level)
    assert found.classwise["8"] == 0
    assert found.absent == ["8"]


@ANY_LEVEL
def test_area_depends_on_the_order_of_scores_only(level):
    truth, scores = random_case(level, clips=40, seed=1)
    scores = 0.2 + 0.8 * scores
    expected, squared = (score(truth, s, TAXONOMY, level) for s in (scores, scores**2))
    assert (squared.micro_auprc, squared.classwise) == (expected.micro_auprc, expected.classwise)


@ANY_LEVEL
def test_curves_are_those_whose_area_is_scored(level):
    truth, scores = random_case(level, clips=30, seed=2)
    result = score(truth, scores, TAXONOMY, level)
    drawn = curves(truth, scores, TAXONOMY, level)
    assert {name: curve.area for name, curve in drawn.items()} == result.classwise | {"micro": result.micro_auprc}
    for curve in drawn.values():
        assert (np.diff(curve.recall) >= 0).all()
        assert (curve.recall[0], curve.precision[0], curve.recall[-1], curve.precision[-1]) == (0, 1, 1, 0)


@ANY_LEVEL
@pytest.mark.parametrize("decimals", [16, 1])
def test_bootstrap_equals_scoring_the_drawn_clips(level, decimals):
    truth, scores = random_case(level, clips=50, seed=3, decimals=decimals)
    result = bootstrap(truth, scores, TAXONOMY, level, resamples=20, seed=7)
    generator = np.random.default_rng(7)
    for micro, macro in zip(result.micro_auprc, result.macro_auprc, strict=True):
        drawn = generator.integers(50, size=50)
        expected = score(truth[drawn], scores[drawn], TAXONOMY, level)
        assert (micro, macro) == (expected.micro_auprc, expected.macro_auprc)


def test_interval_holds_the_middle_95_percent():
    assert interval(np.arange(1001.0)[::-1]) == (25, 975)


@pytest.mark.parametrize("value", [math.nan, -0.1, 1.1, math.inf])
def test_refuses_scores_that_are_none(value):
    truth, scores = random_case("coarse", clips=3, seed=0)
    scores[1, 2] = value
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        score(truth, scores, TAXONOMY, "coarse")


def test_refuses_tags_of_another_level():
    with pytest.raises(ValueError, match=r"\(clips, 29\)"):
        score(*random_case("coarse", clips=3, seed=0), TAXONOMY, "fine")
