"""`iusp score` against the textbook's loop over thresholds, and the bootstrap."""

import statistics
from itertools import pairwise
from pathlib import Path

import numpy as np

import iusp
from benchmarks.timing import Figure, Report, interleaved, milliseconds, one_thread, ratio
from iusp.metrics import bootstrap, score
from iusp.taxonomy import read_taxonomy

CLIPS, RESAMPLES = 443, 1000  # of SONYC-UST 2019's validate split; of params.yaml


def area(counts: list[tuple[int, int, int]]) -> float:
    """Area under the curve of (TP, FP, FN) at falling thresholds."""
    points = [(tp / max(tp + fp, 0.5), tp / max(tp + fn, 0.5)) for tp, fp, fn in counts]
    points = [points[index] for index in np.argsort([recall for _, recall in points])]
    return sum((r1 - r0) * (p0 + p1) / 2 for (p0, r0), (p1, r1) in pairwise([(1, 0), *points, (0, 1)]))


def curve(truth: list[list[bool]], scores: list[list[float]], falling: bool) -> float:
    """AUPRC of all columns pooled: at every threshold, look at every clip and tag."""
    counts = []
    thresholds = {value for row in scores for value in row if value >= 0.01} | {1.0}
    for threshold in sorted(thresholds, reverse=falling):
        tp = fp = fn = 0
        for present, row in zip(truth, scores, strict=True):
            for is_there, value in zip(present, row, strict=True):
                predicted = value >= threshold
                tp += is_there and predicted
                fp += predicted and not is_there
                fn += is_there and not predicted
        counts.append((tp, fp, fn))
    return area(counts)


def textbook(truth: list[list[bool]], scores: list[list[float]]) -> tuple[float, list[float]]:
    """Micro-averaged AUPRC and that of each tag, points of equal recall in the challenge's order."""
    columns = [([[row[tag]] for row in truth], [[row[tag]] for row in scores]) for tag in range(len(truth[0]))]
    return curve(truth, scores, falling=False), [curve(*column, falling=True) for column in columns]


def main() -> None:
    """Measure and print."""
    one_thread()
    taxonomy = read_taxonomy(Path(iusp.__file__).with_name("taxonomy.yaml"))
    random = np.random.default_rng(0)
    truth = random.random((CLIPS, 8)) < 0.3
    scores = 0.6 * random.random(truth.shape) + 0.4 * truth
    lists = truth.tolist(), scores.tolist()
    times = interleaved(
        {
            "ours": lambda: [score(truth, scores, taxonomy, "coarse") for _ in range(20)],
            "textbook": lambda: textbook(*lists),
            "bootstrap": lambda: bootstrap(truth, scores, taxonomy, "coarse", RESAMPLES, 0),
        },
        3,
    )
    times["ours"] = [seconds / 20 for seconds in times["ours"]]
    micro, classwise = textbook(*lists)
    found = score(truth, scores, taxonomy, "coarse")
    pairs = zip([micro, *classwise], [found.micro_auprc, *found.classwise.values()], strict=True)
    apart = max(abs(a - b) for a, b in pairs)
    assert apart < 1e-12, apart
    report = Report()
    report.figures.append(ratio("score, against the loop over thresholds", times["textbook"], times["ours"], 300))
    seconds = times["bootstrap"]
    what = f"bootstrap of {RESAMPLES} resamples × {CLIPS} clips × 8 tags"
    report.figures.append(
        Figure(what, statistics.median(seconds), min(seconds), max(seconds), " s", target=5, at_most=True)
    )
    report.notes.append(
        f"{milliseconds(times['ours'])} against {milliseconds(times['textbook'])} for {CLIPS} clips × 8 tags; the nine "
        f"AUPRCs differ by {apart:.0e} at most. The loop is plain Python, without NumPy but for the order of recalls."
    )
    report.print()


if __name__ == "__main__":
    main()
