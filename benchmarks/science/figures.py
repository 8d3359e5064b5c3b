"""The pictures of docs/results.md."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.science.statistics import Mean
from benchmarks.science.study import Setting, Study
from iusp.evaluation.plots import STYLE
from iusp.io.files import atomic

# The methods that all questions are about.
COLOURS = {"labels": "black", "kd": "C0", "sp": "C1", "iusp": "C3", "iusp+kd": "C4"}
OTHER_COLOUR = "0.6"


def draw_means(study: Study, data: str, path: Path) -> None:
    """Draw every method's mean with its interval, best first, a panel for each size."""
    with _panels(study.main(data), path, "micro AUPRC on test, mean and 95 % interval; dashed: the teacher") as panels:
        for panel, setting in panels:
            means = {name: setting.score(name) for name in setting.methods}
            names = sorted(means, key=lambda name: -means[name].mean)
            for row, name in enumerate(names):
                _dot(panel, means[name], -row, name)
            if data in study.teachers:
                panel.axvline(study.teachers[data], color="black", linestyle="--", linewidth=1)
            _label(panel, names)


def draw_differences(study: Study, data: str, path: Path) -> None:
    """Draw paired differences from labels, and of IUSP from SP, a panel for each size."""
    label = "difference of micro AUPRC from labels, mean and 95 % interval; filled: clear of zero"
    with _panels(study.main(data), path, label) as panels:
        for panel, setting in panels:
            found = {name: setting.difference(name, "labels") for name in setting.methods if name != "labels"}
            rows = sorted(((name, one) for name, one in found.items() if one), key=lambda item: -item[1].mean)
            if one := setting.difference("iusp", "sp"):
                panel.axhline(0.5 - len(rows), color=OTHER_COLOUR, linewidth=0.8)
                rows.append(("iusp - sp", one))
            for row, (name, one) in enumerate(rows):
                _dot(panel, one, -row, name, filled=one.sign != 0)
            panel.axvline(0, color="black", linewidth=0.8)
            _label(panel, [name for name, _ in rows])


def draw_regimes(study: Study, data: str, path: Path) -> None:
    """Draw the differences of the core methods from labels in every regime."""
    settings = study.regimes(data)
    methods = [
        name for name in COLOURS if name != "labels" and any(name in one.runs for one in settings if not one.main)
    ]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 0.2 * len(settings) * (len(methods) + 1) + 1.2))
        panel: Axes = figure.subplots()
        for row, setting in enumerate(settings):
            for index, method in enumerate(methods):
                if one := setting.difference(method, "labels"):
                    offset = 0.7 * ((index + 0.5) / len(methods) - 0.5)
                    _dot(panel, one, -row - offset, method, filled=one.sign != 0)
        names = [f"{one.student}{' (main)' if one.main else ''}\n{one.regime}" for one in settings]
        panel.set_yticks([-row for row in range(len(settings))], names)
        panel.set_ylim(0.5 - len(settings), 0.5)
        panel.axvline(0, color="black", linewidth=0.8)
        for method in methods:
            panel.plot([], [], "o", color=COLOURS[method], label=method)
        figure.legend(loc="outside upper center", ncols=len(methods))
        panel.set_xlabel("difference of micro AUPRC from labels, mean and 95 % interval; filled: clear of zero")
        _save(figure, path)


@contextmanager
def _panels(sizes: Sequence[Setting], path: Path, label: str) -> Iterator[list[tuple[Axes, Setting]]]:
    """Yield a panel for each size, then write the picture."""
    with mpl.rc_context(STYLE):
        rows = max(len(one.methods) for one in sizes)
        figure = Figure(figsize=(2.9 * len(sizes) + 0.6, 0.23 * rows + 1.1))
        panels = list(figure.subplots(1, len(sizes), squeeze=False)[0])
        for panel, setting in zip(panels, sizes, strict=True):
            panel.set_title(f"{setting.student}, {setting.parameters:,} parameters", fontsize=9)
            panel.locator_params(axis="x", nbins=5)
        yield list(zip(panels, sizes, strict=True))
        figure.supxlabel(label, fontsize=9)
        _save(figure, path)


def _dot(panel: Axes, one: Mean, y: float, name: str, filled: bool = True) -> None:
    """Draw a mean with its interval; of a single seed, without."""
    colour = COLOURS.get(name.partition(" - ")[0], OTHER_COLOUR)
    ends = [[one.mean - one.low], [one.high - one.mean]] if one.n > 1 else None
    face = colour if filled else "white"
    panel.errorbar(one.mean, y, xerr=ends, fmt="o", color=colour, markerfacecolor=face, markersize=5, capsize=2)


def _label(panel: Axes, names: Sequence[str]) -> None:
    """Name the rows from the top; the methods in colour are bold."""
    panel.set_yticks([-row for row in range(len(names))], names)
    for text in panel.get_yticklabels():
        text.set_fontweight("bold" if text.get_text() in COLOURS else "normal")
    panel.set_ylim(0.4 - len(names), 0.6)


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
