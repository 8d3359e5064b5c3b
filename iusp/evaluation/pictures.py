"""Choose the networks and clips that the pictures of an evaluation show, and draw the pictures."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from iusp.artifacts.evaluation import EvaluationFolder
from iusp.artifacts.metrics import Metrics
from iusp.distillation.similarity import row_normalised
from iusp.evaluation.judge import EvaluatedNetwork, Judge
from iusp.evaluation.metrics import Curve
from iusp.evaluation.plots import (
    PicturedClip,
    draw_comparison,
    draw_frame_similarities,
    draw_precision_recall,
    draw_training,
    plain,
)
from iusp.io.files import atomic
from iusp.models.layers import Tagger
from iusp.models.maps import frames, gram, pooled_gram

BATCH = 50
Matrices = dict[str, NDArray[np.float32]]


def draw_all(folder: EvaluationFolder, metrics: Metrics, judge: Judge, shown: Mapping[str, EvaluatedNetwork]) -> None:
    """Write every picture and the curves behind them.

    Args:
        folder: folder to write into.
        metrics: quality and cost of every network.
        judge: truth of the evaluated clips.
        shown: the teacher and the best seed of every student, by name.
    """
    curves = {name: judge.curves(network.scores) for name, network in shown.items()}
    for name, by_category in curves.items():
        _write_curve(folder, name, by_category["micro"])
    draw_comparison(metrics, folder.plots / "comparison.png")
    draw_precision_recall(curves, metrics, judge.taxonomy, folder.plots / "precision_recall.png")
    records = {name: network.folder.record for name, network in shown.items()}
    draw_training(records, folder.plots / "training.png")
    rows = _clear_clips(judge, judge.config.pictured_clips)
    if len(rows):
        taggers = {name: network.tagger for name, network in shown.items()}
        clips = _pictured_clips(judge, taggers, rows)
        path, seconds = folder.plots / "frame_similarities.png", judge.features.config.clip_seconds
        draw_frame_similarities(clips, agreement(taggers, judge.log_mel), seconds, path)


def _write_curve(folder: EvaluationFolder, network: str, curve: Curve) -> None:
    with atomic(folder.curve(network)) as temporary:
        pd.DataFrame({"recall": curve.recall, "precision": curve.precision}).to_csv(temporary, index=False)


def _clear_clips(judge: Judge, count: int) -> NDArray[np.int64]:
    """Return, for each category, the first clip that has only this category; repetition is clearest in such clips."""
    truth = judge.truth["coarse"]
    alone = truth & (truth.sum(axis=1, keepdims=True) == 1)
    rows: NDArray[np.int64] = np.sort(alone.argmax(axis=0)[alone.any(axis=0)])[:count]
    return rows


def _pictured_clips(judge: Judge, taggers: Mapping[str, Tagger], rows: NDArray[np.int64]) -> Sequence[PicturedClip]:
    filenames, truth, log_mel = judge.filenames, judge.truth["coarse"], judge.log_mel[rows].astype(np.float32)
    matrices = similarities(taggers, log_mel)
    return [
        PicturedClip(
            f"{plain(judge.taxonomy.coarse_tags[int(truth[row].argmax())])}: {filenames[row]}",
            log_mel[index],
            {name: matrix[index] for name, matrix in matrices.items()},
        )
        for index, row in enumerate(rows)
    ]


@torch.inference_mode()
def similarities(taggers: Mapping[str, Tagger], log_mel: NDArray[np.float32]) -> Matrices:
    """Return the row-normalised frame similarities (N, T', T') of clips in the last layer of each network.

    T' is the smallest number of frames in the last layers. If a network has more frames, they are averaged to T'
    frames.

    Args:
        taggers: networks by name.
        log_mel: log-mel (N, T, M) of the clips.
    """
    grams = {name: gram(frames(tagger(torch.from_numpy(log_mel))[1][-1])) for name, tagger in taggers.items()}
    count = min(matrix.shape[-1] for matrix in grams.values())
    return {name: row_normalised(pooled_gram(matrix, count)).numpy() for name, matrix in grams.items()}


def agreement(taggers: Mapping[str, Tagger], log_mel: NDArray[np.float16]) -> dict[str, float]:
    """Return the mean correlation, over clips, of each student's frame similarities with the teacher's.

    The diagonal is left out, because every frame is equal to itself.

    Args:
        taggers: networks by name; the first is the teacher.
        log_mel: log-mel (N, T, M) of the clips.
    """
    teacher, *students = taggers
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in students}
    for start in range(0, len(log_mel), BATCH):
        matrices = similarities(taggers, log_mel[start : start + BATCH].astype(np.float32))
        for name in students:
            found[name].append(_correlations(matrices[teacher], matrices[name]))
    return {name: float(np.mean(np.concatenate(values))) for name, values in found.items()}


def _correlations(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return Pearson's correlation of the off-diagonal entries of two matrices (N, T', T'), for each clip."""
    off = ~np.eye(first.shape[-1], dtype=bool)
    a, b = (values[:, off].astype(np.float64) for values in (first, second))
    a, b = (values - values.mean(axis=1, keepdims=True) for values in (a, b))
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    # Constant similarities have no correlation; it counts as 0.
    correlations: NDArray[np.float64] = np.divide((a * b).sum(axis=1), norm, out=np.zeros(len(a)), where=norm > 0)
    return correlations
