"""Draw pictures without a display. The same data give the same bytes. Each title states what the picture shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from iusp.artifacts.metrics import Metrics, StudentResult, method_of
from iusp.artifacts.records import TrainingRecord
from iusp.data.taxonomy import Taxonomy
from iusp.evaluation.metrics import Curve
from iusp.io.files import atomic

AUPRC = "micro-averaged AUPRC"
TEACHER_COLOUR = "black"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "figure.titlesize": 11,
    # A $ in the name of a clip or tag must not start a formula.
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.constrained_layout.use": True,
}
FAMILIES = {"cnn_lstm": "CNN-LSTM", "mobilenetv2": "MobileNetV2", "vggish": "VGGish"}


def colours(networks: Sequence[str]) -> dict[str, str]:
    """Return the colour that each network has in every picture; the first network is the teacher."""
    return {name: f"C{(index - 1) % 10}" if index else TEACHER_COLOUR for index, name in enumerate(networks)}


def plain(tag: str) -> str:
    """Return a tag's name without its number: `7_human-voice` becomes `human-voice`."""
    return tag.partition("_")[2]


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def draw_comparison(metrics: Metrics, path: Path) -> None:
    """Draw each network's micro-averaged AUPRC with its interval and all its seeds, the best student first."""
    students = sorted(metrics.students.items(), key=lambda item: -item[1].coarse.micro_auprc)
    best_name, best = students[0]
    kept = best.coarse.micro_auprc / max(metrics.teacher.coarse.micro_auprc, 1e-9)
    size = best.parameters / metrics.teacher.parameters
    colour = colours(list(metrics.networks))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 0.55 * len(metrics.networks) + 1.6))
        panel: Axes = figure.subplots()
        for place, (name, network) in enumerate([("teacher", metrics.teacher), *students]):
            quality = network.coarse
            ends = [[quality.micro_auprc - quality.micro_auprc_low], [quality.micro_auprc_high - quality.micro_auprc]]
            panel.errorbar(quality.micro_auprc, -place, xerr=ends, fmt="o", color=colour[name], capsize=3)
            if isinstance(network, StudentResult):
                seeds = list(network.seeds.values())
                panel.plot(seeds, [-place - 0.28] * len(seeds), "|", color=colour[name], markersize=8)
        panel.axvline(metrics.teacher.coarse.micro_auprc, color="grey", linestyle=":", linewidth=1)
        labels = [
            f"{name} ({method_of(network)})\n{FAMILIES.get(network.architecture, network.architecture)}, "
            f"{network.parameters:,} parameters"
            for name, network in [("teacher", metrics.teacher), *students]
        ]
        panel.set_yticks([-place for place in range(len(labels))], labels)
        panel.set_xlabel(
            f"{AUPRC} on {metrics.split}\ndot: registered seed, with its 95 % interval over clips; ticks: every seed"
        )
        figure.suptitle(
            f"{best_name}: {100 * kept:.0f} % of the teacher's AUPRC with {100 * size:.0f} % of its parameters"
        )
        _save(figure, path)


def draw_precision_recall(
    curves: Mapping[str, Mapping[str, Curve]], metrics: Metrics, taxonomy: Taxonomy, path: Path
) -> None:
    """Draw one panel for the micro average and one for each category, the best-recognised category first.

    Args:
        curves: network → category id or `micro` → curve.
        metrics: quality of every network; categories are sorted by the AUPRC of the best student.
        taxonomy: names of the categories.
        path: PNG to write.
    """
    best = metrics.best_student
    auprc = metrics.students[best].coarse.classwise
    order = sorted(taxonomy.coarse, key=lambda category: -auprc[category])
    colour = colours(list(curves))
    with mpl.rc_context(STYLE):
        rows = -(-(len(order) + 1) // 3)
        figure = Figure(figsize=(9, 2.7 * rows + 0.9))
        axes: NDArray[Any] = figure.subplots(rows, 3, sharex=True, sharey=True, squeeze=False)
        for panel, category in zip(axes.flat, ["micro", *order], strict=False):
            for name, by_category in curves.items():
                curve = by_category[category]
                # The end points of the metric, and precision 0 where nothing is found, are not measurements.
                real = (curve.recall > 0) & (curve.precision > 0)
                panel.plot(curve.recall[real], curve.precision[real], color=colour[name], linewidth=1.2, label=name)
            value = metrics.students[best].coarse.micro_auprc if category == "micro" else auprc[category]
            what = "all categories, micro average" if category == "micro" else plain(taxonomy.coarse[category])
            panel.set_title(f"{what} ({value:.2f})", fontsize=9)
            panel.set(xlim=(0, 1), ylim=(0, 1.02))
        for panel in list(axes.flat)[len(order) + 1 :]:
            panel.set_axis_off()
        for panel in axes[-1]:
            panel.set_xlabel("recall")
        for panel in axes[:, 0]:
            panel.set_ylabel("precision")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(curves)))
        easy, hard = plain(taxonomy.coarse[order[0]]), plain(taxonomy.coarse[order[-1]])
        figure.suptitle(f"{best} recognises {easy} best and {hard} worst on {metrics.split} (brackets: its AUPRC)")
        _save(figure, path)


def draw_training(records: Mapping[str, TrainingRecord], path: Path) -> None:
    """Draw the micro-averaged AUPRC on validate by epoch; a dot marks the epoch that was kept.

    Args:
        records: training record of each network; the first is the teacher's.
        path: PNG to write.
    """
    scores = {name: record.column("validate_micro_auprc") for name, record in records.items()}
    kept = {name: int(np.argmax(values)) for name, values in scores.items()}
    latest, epochs = max(kept.values()) + 1, max(map(len, scores.values()))
    colour = colours(list(records))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.2))
        panel: Axes = figure.subplots()
        for name in sorted(scores, key=lambda name: -max(scores[name])):
            values, best = scores[name], kept[name]
            label = f"{name} ({values[best]:.3f} in epoch {best + 1})"
            panel.plot(range(1, len(values) + 1), values, color=colour[name], label=label)
            panel.plot(best + 1, values[best], "o", color=colour[name], markersize=5)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_ylabel(f"{AUPRC} on validate")
        panel.legend(loc="lower right", title="best epoch, marked by a dot")
        figure.suptitle(f"Every network reached its best AUPRC on validate by epoch {latest} of {epochs}")
        _save(figure, path)


@dataclass(frozen=True)
class PicturedClip:
    """A clip, and how similar its frames are to each other in each network.

    Attributes:
        caption: title of the clip's row in the picture.
        log_mel: log-mel (T, M).
        similarities: row-normalised similarities (T', T') by network.
    """

    caption: str
    log_mel: NDArray[np.float32]
    similarities: Mapping[str, NDArray[np.float32]]


def draw_frame_similarities(
    clips: Sequence[PicturedClip], agreement: Mapping[str, float], seconds: float, path: Path
) -> None:
    """Draw, for each clip, its log-mel and the frame similarities of the teacher and of the students.

    Args:
        clips: at least one clip.
        agreement: correlation of each student's similarities with the teacher's; the highest comes first.
        seconds: length of a clip.
        path: PNG to write.
    """
    students = sorted(agreement, key=lambda name: -agreement[name])
    networks = ["teacher", *students]
    # The diagonal is far above all other values, so its colour may saturate.
    top = max(float(np.percentile(matrix, 98)) for clip in clips for matrix in clip.similarities.values())
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.65 * (len(networks) + 2) + 0.9, 1.75 * len(clips) + 1.5))
        widths = [2.0] + [1.0] * len(networks)
        axes: NDArray[Any] = figure.subplots(len(clips), len(networks) + 1, squeeze=False, width_ratios=widths)
        for row, clip in zip(axes, clips, strict=True):
            extent = (0, seconds, 0, clip.log_mel.shape[1])
            row[0].imshow(clip.log_mel.T, origin="lower", aspect="auto", extent=extent)
            row[0].set_title(clip.caption, fontsize=8)
            row[0].set_ylabel("mel band")
            for panel, network in zip(row[1:], networks, strict=True):
                matrix, extent = clip.similarities[network], (0, seconds, 0, seconds)
                image = panel.imshow(matrix, "magma", origin="lower", extent=extent, vmin=0, vmax=top)
                panel.set_xticks([0, seconds])
                panel.set_yticks([])
            row[1].set_ylabel("time, s")
        axes[0, 1].set_title("teacher", fontsize=8)
        for panel, network in zip(axes[0, 2:], students, strict=True):
            panel.set_title(f"{network}\nr = {agreement[network]:.2f}", fontsize=8)
        for panel in axes[-1]:
            panel.set_xlabel("time, s")
        figure.colorbar(image, ax=axes[:, 1:], shrink=0.6, label="similarity of two frames", extend="max")
        figure.suptitle(_agreement_title(agreement, students))
        _save(figure, path)


def _agreement_title(agreement: Mapping[str, float], students: Sequence[str]) -> str:
    most, least = students[0], students[-1]
    title = f"The frame similarities of {most} are closest to the teacher's (r = {agreement[most]:.2f})"
    if most != least:
        title += f", those of {least} furthest away (r = {agreement[least]:.2f})"
    return f"{title}\nr: correlation with the teacher, without the diagonal, averaged over all evaluated clips"


def draw_drift(
    columns: Sequence[tuple[str, NDArray[np.float64], NDArray[np.float64], float | None, bool]], path: Path
) -> None:
    """Draw the cumulative distribution of each column in the reference and in the new files, drifted columns first.

    Args:
        columns: title, reference numbers (N,), new numbers (M,), a tag's threshold, and whether the column drifted.
        path: PNG to write.
    """
    drifted_first = sorted(columns, key=lambda column: not column[-1])
    with mpl.rc_context(STYLE):
        across = min(3, len(columns))
        rows = -(-len(columns) // across)
        figure = Figure(figsize=(max(3.4 * across, 4), 2.3 * rows + 0.8))
        axes: NDArray[Any] = figure.subplots(rows, across, sharey=True, squeeze=False)
        for panel, (title, reference, new, threshold, drifted) in zip(axes.flat, drifted_first, strict=False):
            panel.ecdf(reference, color=TEACHER_COLOUR, linewidth=1.2, label="reference")
            panel.ecdf(new, color="C3", linewidth=1.2, label="new")
            if threshold is not None:
                panel.axvline(threshold, color="grey", linestyle=":", label="threshold")
                panel.set_xlim(-0.02, 1.02)
            panel.set_title(title, fontsize=8, color="C3" if drifted else "black")
        for panel in list(axes.flat)[len(columns) :]:
            panel.set_axis_off()
        for panel in axes[:, 0]:
            panel.set_ylabel("share of clips at or below")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        count = sum(drifted for *_, drifted in columns)
        figure.suptitle(f"{count} of {len(columns)} columns have drifted")
        _save(figure, path)
