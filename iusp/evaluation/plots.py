"""Pictures, drawn without a display and with the same bytes every time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from iusp.artifacts.records import Row
from iusp.data.taxonomy import Taxonomy
from iusp.evaluation.metrics import Curve
from iusp.io.files import atomic

TEACHER_COLOUR = "black"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    # Names of clips and tags come from outside: a $ in one is no formula.
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.constrained_layout.use": True,
}


def _colour(index: int) -> str:
    return f"C{index % 10}"


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def draw_precision_recall(curves: Mapping[str, Mapping[str, Curve]], taxonomy: Taxonomy, path: Path) -> None:
    """Draw one panel per category and one for the micro average.

    Args:
        curves: network → category id or `micro` → curve; the first network is the teacher.
        taxonomy: names the categories.
        path: PNG to write.
    """
    with mpl.rc_context(STYLE):
        titles = {"micro": "micro average", **taxonomy.coarse}
        rows = -(-len(titles) // 3)
        figure = Figure(figsize=(9, 3 * rows))
        axes: NDArray[Any] = figure.subplots(rows, 3, sharex=True, sharey=True, squeeze=False)
        for panel, (category, tag) in zip(axes.flat, titles.items(), strict=False):
            for index, (network, by_category) in enumerate(curves.items()):
                curve = by_category[category]
                colour = _colour(index - 1) if index else TEACHER_COLOUR
                # The metric's end points, and precision 0 where nothing is found, are no part of the picture.
                real = (curve.recall > 0) & (curve.precision > 0)
                panel.plot(curve.recall[real], curve.precision[real], color=colour, linewidth=1.2, label=network)
            panel.set_title(tag, fontsize=9)
        for panel in axes[-1]:
            panel.set_xlabel("recall")
        for panel in axes[:, 0]:
            panel.set_ylabel("precision")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(curves)))
        _save(figure, path)


def draw_training(records: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Draw the micro-averaged AUPRC on validate by epoch.

    Args:
        records: network → training record; the first is the teacher's.
        path: PNG to write.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 4))
        panel: Axes = figure.subplots()
        for index, (network, record) in enumerate(records.items()):
            epochs = [row["epoch"] for row in record]
            scores = [row["validate_micro_auprc"] for row in record]
            panel.plot(epochs, scores, color=_colour(index - 1) if index else TEACHER_COLOUR, label=network)
        panel.set_xlabel("epoch")
        panel.set_ylabel("micro-averaged AUPRC on validate")
        figure.legend(loc="outside right upper")
        _save(figure, path)


def draw_comparison(rows: Sequence[tuple[str, float, float, float, Sequence[float]]], label: str, path: Path) -> None:
    """Draw micro-averaged AUPRC with its interval, one line per network, and every seed beside it.

    Args:
        rows: name, AUPRC, its interval's ends, and the AUPRC of each seed; the first row is the teacher.
        label: names what is measured.
        path: PNG to write.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 0.45 * len(rows) + 1.1))
        panel: Axes = figure.subplots()
        for index, (_, value, low, high, seeds) in enumerate(rows):
            colour = _colour(index - 1) if index else TEACHER_COLOUR
            panel.errorbar(value, -index, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=3)
            panel.plot(seeds, [-index - 0.25] * len(seeds), "|", color=colour, markersize=8)
        panel.set_yticks([-index for index in range(len(rows))], [row[0] for row in rows])
        panel.set_xlabel(f"{label}\n(dot: registered network, with its 95 % interval over clips; ticks: every seed)")
        _save(figure, path)


def draw_frame_similarities(
    clips: Sequence[tuple[str, NDArray[np.float32], Mapping[str, NDArray[np.float32]]]], seconds: float, path: Path
) -> None:
    """Draw, for each clip, its log-mel and each network's frame-similarity matrix.

    Args:
        clips: caption, log-mel (T, M), and network → row-normalised similarities (T', T').
        seconds: length of a clip.
        path: PNG to write.
    """
    networks = list(clips[0][2])
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.7 * (len(networks) + 2), 1.75 * len(clips) + 0.4))
        axes: NDArray[Any] = figure.subplots(
            len(clips), len(networks) + 1, squeeze=False, width_ratios=[2] + [1] * len(networks)
        )
        for row, (caption, log_mel, similarities) in zip(axes, clips, strict=True):
            row[0].imshow(log_mel.T, origin="lower", aspect="auto", extent=(0, seconds, 0, log_mel.shape[1]))
            row[0].set_title(caption, fontsize=7)
            row[0].set_yticks([])
            # One scale for the networks of a clip; the diagonal, far above the rest, may saturate.
            brightest = max(float(np.percentile(matrix, 98)) for matrix in similarities.values())
            for panel, network in zip(row[1:], networks, strict=True):
                extent = (0, seconds, 0, seconds)
                panel.imshow(similarities[network], "magma", origin="lower", extent=extent, vmin=0, vmax=brightest)
                panel.set_xticks([])
                panel.set_yticks([])
        for panel, network in zip(axes[0, 1:], networks, strict=True):
            panel.set_title(network, fontsize=8)
        for panel in axes[-1]:
            panel.set_xlabel(f"0 to {seconds:g} s")
        _save(figure, path)


def draw_drift(
    columns: Sequence[tuple[str, NDArray[np.float64], NDArray[np.float64], float | None, bool]], path: Path
) -> None:
    """Draw the distribution functions of each column of numbers, then and now.

    Args:
        columns: title, numbers then (N,) and now (M,), a tag's threshold, and whether it has drifted.
        path: PNG to write.
    """
    with mpl.rc_context(STYLE):
        across = min(3, len(columns))
        rows = -(-len(columns) // across)
        figure = Figure(figsize=(max(3.4 * across, 4), 2.3 * rows + 0.3))
        axes: NDArray[Any] = figure.subplots(rows, across, sharey=True, squeeze=False)
        for panel, (title, then, now, threshold, drifted) in zip(axes.flat, columns, strict=False):
            panel.ecdf(then, color=TEACHER_COLOUR, linewidth=1.2, label="reference")
            panel.ecdf(now, color="C3", linewidth=1.2, label="new")
            if threshold is not None:
                panel.axvline(threshold, color="grey", linestyle=":", label="threshold")
                panel.set_xlim(-0.02, 1.02)
            panel.set_title(title, fontsize=8, color="C3" if drifted else "black")
        for panel in list(axes.flat)[len(columns) :]:
            panel.set_axis_off()
        for panel in axes[:, 0]:
            panel.set_ylabel("share at most")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        _save(figure, path)
