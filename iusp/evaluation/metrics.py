"""The metric of DCASE 2019 Task 5: areas under precision-recall curves (AUPRC), per category and pooled.

At the fine level, a category can have the tag ``X``, which means a sound of unknown kind. All other tags of a category
are called its complete tags. The thresholds of a category's curve are the distinct scores of its complete tags. At the
fine level, the metric counts for each clip which tags of a category match, and it has special rules for ``X``. At the
coarse level, each category has one complete tag and no ``X``, so the same code computes both levels. The results equal
the results of the challenge's own `metrics.py`.

If several points of a curve have the same recall, the default algorithm of `numpy.argsort` determines their order, as
in the challenge's code. This algorithm is not stable, and the order depends on the processor. With NumPy 2.4 on 443
clips, the macro AUPRC was 0.005 to 0.05 lower on a processor without AVX2 than on a processor with AVX2; the micro
AUPRC differed by at most 0.0003. Compare only results that were computed on the same type of processor.
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
    """The scores that the challenge reports, each in [0, 1].

    Attributes:
        micro_auprc: AUPRC of the counts that are summed over the categories.
        micro_f1: F-score of the summed counts at the smallest threshold ≥ 0.5.
        macro_auprc: mean of the AUPRCs in `classwise`.
        classwise: AUPRC of each category, by the id of the category.
        absent: ids of the categories that no clip has. The challenge counts their AUPRC as 0.
    """

    micro_auprc: float
    micro_f1: float
    macro_auprc: float
    classwise: dict[str, float]
    absent: list[str]


@dataclass(frozen=True)
class Curve:
    """A precision-recall curve from (recall 0, precision 1) to (recall 1, precision 0), by ascending recall.

    Attributes:
        precision: precision of each point, (points,).
        recall: recall of each point, (points,).
    """

    precision: Floats
    recall: Floats

    @property
    def area(self) -> float:
        """Area under the curve, by the trapezoidal rule."""
        return float(np.trapezoid(self.precision, self.recall))


@dataclass(frozen=True)
class Bootstrap:
    """The AUPRCs of every bootstrap resample of the clips.

    Attributes:
        micro_auprc: micro-averaged AUPRC of each resample, (resamples,).
        macro_auprc: macro-averaged AUPRC of each resample, (resamples,).
    """

    micro_auprc: Floats
    macro_auprc: Floats


@dataclass(frozen=True)
class Difference:
    """The difference between the micro AUPRCs of two systems on the same clips.

    Attributes:
        difference: micro AUPRC of the system minus that of the reference.
        low: lower end of the 95 % bootstrap interval of the difference, over clips.
        high: upper end of the interval.
        probability_worse: share of the resamples in which the difference is negative.
    """

    difference: float
    low: float
    high: float
    probability_worse: float


@dataclass(frozen=True)
class _Events:
    """The scores at which the counts of one category change as the threshold falls, in descending order.

    An event is the score of one tag in one clip. Each event knows its clip. Therefore, the counts of a bootstrap
    resample are sums over events, in which each event is multiplied by the number of times that its clip was drawn.

    Attributes:
        clip: index of the clip of each event, (E,). The index N is an artificial clip that adds the threshold 1.0.
        score: score of each event, (E,), in descending order. The score +inf stands for the counts of a clip above all
            its scores, where no tag is predicted.
        changes: change of TP, FP and FN at each event, (3, E).
        is_threshold: for each event, whether its score is the score of a complete tag, (E,).
        last: for each event, the index of the last event with the same score, (E,).
    """

    clip: Ints
    score: Floats
    changes: Ints
    is_threshold: Bools
    last: Ints


def level_tags(taxonomy: Taxonomy, level: Level) -> tuple[str, ...]:
    """Return the tags of a level, in the order of the columns of the arguments `truth` and `scores` of this module.

    SONYC-UST has 8 coarse tags, and 29 fine tags including those of unknown kind (``X``).

    Args:
        taxonomy: categories and tags.
        level: ``coarse`` or ``fine``.
    """
    return taxonomy.coarse_tags if level == "coarse" else taxonomy.all_fine_tags


def _categories(taxonomy: Taxonomy, level: Level) -> dict[str, tuple[str, ...]]:
    """Return the complete tags of each category at a level; a category without fine tags has no fine level."""
    if level == "coarse":
        return {category: (tag,) for category, tag in taxonomy.coarse.items()}
    return {category: tags for category, tags in taxonomy.fine.items() if tags}


def score_table(scores: Floats, tags: list[str], taxonomy: Taxonomy, level: Level) -> Floats:
    """Turn the probabilities of a network into one score for each tag of a level.

    If the network predicts a tag, the score of the tag is its probability. If the network does not predict a coarse
    tag, the score of the tag is the maximum of the probabilities of its fine tags, because each of these fine tags
    implies the coarse tag. If the network does not predict a fine tag, the score of the tag is 0. Networks never
    predict ``X``.

    Args:
        scores: probabilities (N, K).
        tags: tags of the K outputs of the network, in order.
        taxonomy: categories and tags.
        level: ``coarse`` or ``fine``.

    Returns:
        Scores (N, tags) with one column for each tag of `level_tags`.
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
    """Score one system against the ground truth.

    Args:
        truth: presence (N, tags) of the tags of `level_tags` in each clip.
        scores: scores (N, tags) of the system, in [0, 1].
        taxonomy: categories and tags.
        level: ``coarse`` or ``fine``.

    Raises:
        ValueError: the shapes do not match, or a score is NaN or outside [0, 1].
    """
    events = _events(truth, scores, taxonomy, level)
    classwise, (thresholds, pooled) = _counts(events, np.ones(len(truth), np.int64))
    areas = [_curve(counts).area for counts in classwise]
    categories = _categories(taxonomy, level)
    found = {tag for tag, clips in zip(level_tags(taxonomy, level), truth.T, strict=True) if clips.any()}
    absent = [
        category
        for category in categories
        if found.isdisjoint((taxonomy.coarse[category], *taxonomy.category_tags(category)))
    ]
    return Scores(
        micro_auprc=_curve(pooled).area,
        micro_f1=_f_score(pooled[:, np.searchsorted(thresholds, 0.5)]),
        macro_auprc=float(np.mean(areas)),
        classwise=dict(zip(categories, areas, strict=True)),
        absent=absent,
    )


def curves(truth: Bools, scores: Floats, taxonomy: Taxonomy, level: Level) -> dict[str, Curve]:
    """Return the precision-recall curves whose areas `score` reports.

    The keys are the ids of the categories, and ``micro`` for the micro average. The arguments and errors are those of
    `score`.
    """
    classwise, (_, pooled) = _counts(_events(truth, scores, taxonomy, level), np.ones(len(truth), np.int64))
    named = dict(zip(_categories(taxonomy, level), classwise, strict=True)) | {"micro": pooled}
    return {name: _curve(counts) for name, counts in named.items()}


def bootstrap(truth: Bools, scores: Floats, taxonomy: Taxonomy, level: Level, resamples: int, seed: int) -> Bootstrap:
    """Score one system on bootstrap resamples: clips that are drawn with replacement.

    Each value equals the value that `score` returns for the drawn clips. The draws depend only on the seed and the
    number of clips. If two systems are scored on the same clips in the same order, they are scored on the same
    resamples, so the AUPRCs of one system may be subtracted from those of the other.

    Args:
        truth: presence (N, tags) of the tags of `level_tags` in each clip.
        scores: scores (N, tags) of the system, in [0, 1].
        taxonomy: categories and tags.
        level: ``coarse`` or ``fine``.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the shapes do not match, or a score is NaN or outside [0, 1].
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
    truth: Bools, scores: Floats, reference: Floats, taxonomy: Taxonomy, level: Level, resamples: int, seed: int
) -> Difference:
    """Compare a system with a reference by a paired bootstrap over clips: both are scored on the same resamples.

    Args:
        truth: presence (N, tags) of the tags of `level_tags` in each clip.
        scores: scores (N, tags) of the system, in [0, 1].
        reference: scores (N, tags) of the reference, for the same clips in the same order.
        taxonomy: categories and tags.
        level: ``coarse`` or ``fine``.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the shapes do not match, or a score is NaN or outside [0, 1].
    """
    systems = (scores, reference)
    points = [score(truth, system, taxonomy, level).micro_auprc for system in systems]
    samples = [bootstrap(truth, system, taxonomy, level, resamples, seed).micro_auprc for system in systems]
    differences = samples[0] - samples[1]
    low, high = interval(differences)
    return Difference(points[0] - points[1], low, high, float(np.mean(differences < 0)))


def interval(samples: Floats) -> tuple[float, float]:
    """Return the 95 % percentile interval of bootstrap samples, or of the paired differences of two systems."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def confusion(truth: Bools, predicted: Bools) -> Ints:
    """Count the true positives, false positives and false negatives of one category in each clip.

    Args:
        truth: presence (…, K + 1) of the K complete tags of the category and, in the last column, of ``X``.
        predicted: predicted presence (…, K + 1) of the same tags.

    Returns:
        Counts (3, …) of TP, FP and FN.
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
    # Categories without X use an added last column, which is never true and never predicted.
    truth = np.pad(truth.astype(bool), ((0, 0), (0, 1)))
    scores = np.pad(scores.astype(np.float64), ((0, 0), (0, 1)), constant_values=-1)
    column = {tag: index for index, tag in enumerate(tags)}
    events = []
    for category, complete in _categories(taxonomy, level).items():
        uncertain = column.get(taxonomy.uncertain.get(category, ""), -1)
        columns = [*(column[name] for name in complete), uncertain]
        events.append(_category_events(truth[:, columns], scores[:, columns]))
    return events


def _category_events(truth: Bools, scores: Floats) -> _Events:
    clips = len(truth)
    # The counts of a clip change only at its own scores. A repeated score does not change them again.
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
    """Count TP, FP and FN at every threshold.

    Args:
        events: events of each category.
        draws: number of times that each clip was drawn, (N,).

    Returns:
        Two values. The first value is a list with the counts (3, thresholds) of each category, by descending threshold.
        The second value is a pair: the thresholds of all categories in ascending order, and the counts at these
        thresholds, summed over the categories. If a category does not have one of these thresholds, its counts at its
        own next higher threshold are added.
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
    # The ½ replaces only a zero, so that 0 / 0 gives 0.
    return tp / np.maximum(tp + fp, 0.5), tp / np.maximum(tp + fn, 0.5)


def _curve(counts: Ints) -> Curve:
    precision, recall = _precision_recall(counts)
    order = np.argsort(recall)
    return Curve(np.concatenate([[1], precision[order], [0]]), np.concatenate([[0], recall[order], [1]]))


def _f_score(counts: Ints) -> float:
    precision, recall = _precision_recall(counts)
    return float(2 / (1 / precision + 1 / recall)) if precision else 0.0
