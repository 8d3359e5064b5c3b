"""The metric of DCASE 2019 Task 5: areas under precision-recall curves (AUPRC), per category and pooled.

A curve is traced over the distinct scores of a category's complete tags. The fine level counts per clip how a
category's tags match, and treats its ``X`` (kind unknown) specially; the coarse level is the case of one tag and no
``X``, so both share one path. Definition: "DCASE 2019 Task 5 metric", equal to the challenge's own `metrics.py`.

Points of equal recall are joined in the order in which `numpy.argsort`'s default kind leaves them, as the challenge's
code does. That kind is not stable, and which order it leaves depends on the processor: with NumPy 2.4 on 443 clips,
macro AUPRCs without AVX2 were 0.005 to 0.05 lower than with it (micro: within 0.0003). Compare like machines only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from iusp.data.taxonomy import Taxonomy

Level = Literal["coarse", "fine"]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LOWEST_THRESHOLD = 0.01


@dataclass(frozen=True)
class Scores:
    """What the challenge reports; every value lies in [0, 1].

    Attributes:
        micro_auprc: AUPRC of the counts summed over the categories.
        micro_f1: F-score of these counts at the smallest threshold ≥ 0.5.
        macro_auprc: mean of `classwise`.
        classwise: category id → AUPRC.
    """

    micro_auprc: float
    micro_f1: float
    macro_auprc: float
    classwise: dict[str, float]


@dataclass(frozen=True)
class Curve:
    """A precision-recall curve from (recall 0, precision 1) to (1, 0), by ascending recall; both (points,)."""

    precision: Floats
    recall: Floats

    @property
    def area(self) -> float:
        """Area under the curve by the trapezoid rule."""
        return float(np.trapezoid(self.precision, self.recall))


@dataclass(frozen=True)
class Bootstrap:
    """The AUPRC of every resample of the clips; both (resamples,)."""

    micro_auprc: Floats
    macro_auprc: Floats


@dataclass(frozen=True)
class Difference:
    """Micro AUPRC of one system minus another's, on the same clips.

    Attributes:
        difference: on these clips.
        low: lower end of its 95 % bootstrap interval over clips.
        high: upper end.
        probability_worse: share of the resamples in which the difference is negative.
    """

    difference: float
    low: float
    high: float
    probability_worse: float


@dataclass(frozen=True)
class _Events:
    """Where one category's counts change as the threshold falls, by descending score.

    An event is a clip's score of a tag. Kept per clip, the counts of any resample are sums over events, each weighted
    by how often its clip was drawn.

    Attributes:
        clip: (E,) index of the clip; N stands for an ever-present clip that adds the threshold 1.0.
        score: (E,) the score, descending; +inf for a clip's counts before anything is predicted.
        changes: (3, E) change of TP, FP and FN.
        is_threshold: (E,) the score is one of a complete tag.
        last: (E,) index of the last event with the same score.
    """

    clip: Ints
    score: Floats
    changes: Ints
    is_threshold: Bools
    last: Ints


def level_tags(taxonomy: Taxonomy, level: Level) -> tuple[str, ...]:
    """The tags, in order, that the columns of `truth` and `scores` stand for: 8 coarse, or 29 fine with ``X``."""
    return taxonomy.coarse_tags if level == "coarse" else taxonomy.all_fine_tags


def score_table(scores: Floats, tags: list[str], taxonomy: Taxonomy, level: Level) -> Floats:
    """Arrange probabilities (N, K) of `tags` as the level's tags (N, tags).

    A coarse tag that the network does not have is the maximum of its fine ones (any of them makes it true); a fine one
    that it does not have, as those of uncertain kind, is 0.
    """
    column = dict(zip(tags, scores.T, strict=True))
    nothing = np.zeros(len(scores))
    if level == "fine":
        return np.stack([column.get(tag, nothing) for tag in level_tags(taxonomy, level)], axis=1)
    return np.stack(
        [
            column[tag] if tag in column else np.max([column[fine] for fine in taxonomy.fine[category]], axis=0)
            for category, tag in taxonomy.coarse.items()
        ],
        axis=1,
    )


def score(truth: Bools, scores: Floats, taxonomy: Taxonomy, level: Level) -> Scores:
    """Evaluate `scores` against `truth`.

    Args:
        truth: (N, tags) presence of the tags of `level_tags`.
        scores: (N, tags) in [0, 1].
        taxonomy: categories and tags.
        level: ``coarse`` or ``fine``.

    Raises:
        ValueError: a shape does not fit, or a score is NaN or outside [0, 1].
    """
    events = _events(truth, scores, taxonomy, level)
    classwise, (thresholds, pooled) = _counts(events, np.ones(len(truth), np.int64))
    areas = [_curve(counts).area for counts in classwise]
    return Scores(
        micro_auprc=_curve(pooled).area,
        micro_f1=_f_score(pooled[:, np.searchsorted(thresholds, 0.5)]),
        macro_auprc=float(np.mean(areas)),
        classwise=dict(zip(taxonomy.coarse, areas, strict=True)),
    )


def curves(truth: Bools, scores: Floats, taxonomy: Taxonomy, level: Level) -> dict[str, Curve]:
    """The curves whose areas `score` reports, by category id, and ``micro``; same arguments and errors."""
    classwise, (_, pooled) = _counts(_events(truth, scores, taxonomy, level), np.ones(len(truth), np.int64))
    named = dict(zip(taxonomy.coarse, classwise, strict=True)) | {"micro": pooled}
    return {name: _curve(counts) for name, counts in named.items()}


def bootstrap(truth: Bools, scores: Floats, taxonomy: Taxonomy, level: Level, resamples: int, seed: int) -> Bootstrap:
    """Evaluate `scores` on clips drawn with replacement: each value equals `score` of the drawn rows.

    The draws depend on `seed` and N only, so two systems evaluated on the same clips in the same order are paired
    and their samples may be subtracted. Arguments and errors as of `score`.
    """
    events = _events(truth, scores, taxonomy, level)
    generator = np.random.default_rng(seed)
    micro, macro = np.empty(resamples), np.empty(resamples)
    for resample in range(resamples):
        drawn = generator.integers(len(truth), size=len(truth))
        classwise, (_, pooled) = _counts(events, np.bincount(drawn, minlength=len(truth)))
        micro[resample] = _curve(pooled).area
        macro[resample] = np.mean([_curve(counts).area for counts in classwise])
    return Bootstrap(micro, macro)


def paired_difference(
    truth: Bools, scores: Floats, others: Floats, taxonomy: Taxonomy, level: Level, resamples: int, seed: int
) -> Difference:
    """Compare two systems by a paired bootstrap over the clips: both are scored on the same resamples.

    Args:
        truth: as of `score`.
        scores: (N, tags) of the one system.
        others: (N, tags) of the other, of the same clips in the same order.
        taxonomy: categories and tags.
        level: ``coarse`` or ``fine``.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: as of `score`.
    """
    points = [score(truth, one, taxonomy, level).micro_auprc for one in (scores, others)]
    samples = [bootstrap(truth, one, taxonomy, level, resamples, seed).micro_auprc for one in (scores, others)]
    differences = samples[0] - samples[1]
    low, high = interval(differences)
    return Difference(points[0] - points[1], low, high, float(np.mean(differences < 0)))


def interval(samples: Floats) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrap samples, or of two systems' paired differences."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def confusion(truth: Bools, predicted: Bools) -> Ints:
    """Count one category's true positives, false positives and false negatives, per clip.

    Args:
        truth: (…, K + 1) presence of K complete tags, then of ``X``.
        predicted: (…, K + 1) what is predicted of them.

    Returns:
        (3, …) TP, FP, FN.
    """
    t, t0 = truth[..., :-1], truth[..., -1]
    y, y0 = predicted[..., :-1], predicted[..., -1]
    hits, anything = (t & y).sum(-1), predicted.any(-1)
    return np.stack(
        [
            hits + (t0 & anything & (hits == 0)),
            ~t0 * (~t & y).sum(-1) + (~truth.any(-1) & y0 & ~y.all(-1)),
            (t & ~y).sum(-1) + (t0 & ~t.any(-1) & ~anything),
        ]
    )


def _events(truth: Bools, scores: Floats, taxonomy: Taxonomy, level: Level) -> list[_Events]:
    tags = level_tags(taxonomy, level)
    if truth.shape != scores.shape or truth.shape[1:] != (len(tags),):
        raise ValueError(f"truth {truth.shape} and scores {scores.shape} must both be (clips, {len(tags)})")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("scores must lie in [0, 1]")
    # A last column stands for the X of categories without one: never true, never predicted.
    truth = np.pad(truth.astype(bool), ((0, 0), (0, 1)))
    scores = np.pad(scores.astype(np.float64), ((0, 0), (0, 1)), constant_values=-1)
    column = {tag: index for index, tag in enumerate(tags)}
    events = []
    for category, tag in taxonomy.coarse.items():
        complete = (tag,) if level == "coarse" else taxonomy.fine[category]
        uncertain = column.get(taxonomy.uncertain.get(category, ""), -1)
        columns = [*(column[name] for name in complete), uncertain]
        events.append(_category_events(truth[:, columns], scores[:, columns]))
    return events


def _category_events(truth: Bools, scores: Floats) -> _Events:
    clips = len(truth)
    # A clip's counts change only at its own scores, of which equal ones change nothing the second time.
    own = np.concatenate([np.full((clips, 1), np.inf), -np.sort(-scores, axis=1)], axis=1)
    counts = confusion(truth[:, None, :], scores[:, None, :] >= own[:, :, None])
    changes = np.diff(counts, prepend=0, axis=2).reshape(3, -1)
    is_threshold = (own[:, :, None] == scores[:, None, :-1]).any(-1).ravel()
    clip = np.repeat(np.arange(clips), own.shape[1])

    score = np.append(own, 1.0)
    order = np.argsort(-score, kind="stable")
    order = order[score[order] >= LOWEST_THRESHOLD]
    score = score[order]
    return _Events(
        clip=np.append(clip, clips)[order],
        score=score,
        changes=np.pad(changes, ((0, 0), (0, 1)))[:, order],
        is_threshold=np.append(is_threshold, True)[order],
        last=np.searchsorted(-score, -score, side="right") - 1,
    )


def _counts(events: Iterable[_Events], draws: Ints) -> tuple[list[Ints], tuple[Floats, Ints]]:
    """Counts of clips drawn `draws` (N,) times.

    Returns:
        (3, thresholds) of each category by descending threshold; and, by ascending threshold, the union of their
        thresholds with the counts summed over the categories, each at its smallest threshold ≥ that of the union.
    """
    weights = np.append(draws, 1)
    classwise, thresholds = [], []
    for category in events:
        weight = weights[category.clip]
        ends = category.last[category.is_threshold & (weight > 0)]
        ends = ends[np.diff(ends, append=-1) != 0]
        classwise.append(np.cumsum(category.changes * weight, axis=1)[:, ends])
        thresholds.append(category.score[ends])
    union = np.concatenate(thresholds)
    changes = np.concatenate([np.diff(counts, prepend=0, axis=1) for counts in classwise], axis=1)
    order = np.argsort(-union)
    union, pooled = union[order], np.cumsum(changes[:, order], axis=1)
    ends = np.flatnonzero(np.diff(union, append=-1))[::-1]
    return classwise, (union[ends], pooled[:, ends])


def _precision_recall(counts: Ints) -> tuple[Floats, Floats]:
    tp, fp, fn = counts
    # The ½ only ever replaces a zero: 0 / 0 counts as 0.
    return tp / np.maximum(tp + fp, 0.5), tp / np.maximum(tp + fn, 0.5)


def _curve(counts: Ints) -> Curve:
    precision, recall = _precision_recall(counts)
    order = np.argsort(recall)
    return Curve(np.concatenate([[1], precision[order], [0]]), np.concatenate([[0], recall[order], [1]]))


def _f_score(counts: Ints) -> float:
    precision, recall = _precision_recall(counts)
    return float(2 / (1 / precision + 1 / recall)) if precision else 0.0
