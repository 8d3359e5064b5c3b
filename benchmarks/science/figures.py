"""The pictures of docs/results.md."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.science.grid import CORE
from benchmarks.science.statistics import Mean
from benchmarks.science.study import Setting, Study, title
from iusp.evaluation.plots import STYLE
from iusp.io.files import atomic

COLOURS = {"kd": "C0", "sp": "C1", "iusp": "C3", "iusp+kd": "C4"}
"""Colours of the core methods."""
OTHER_COLOUR = "0.55"
GAIN = "gain in micro AUPRC over labels alone"
MARKS = "mean and 95 % interval over seeds; filled: the interval excludes zero"


def draw_overview(study: Study, path: Path) -> None:
    """Draw the gain of each core method for each student: a panel for each data set, students by size."""
    groups = {
        data: {f"{one.student}\n{one.family}, {one.parameters:,}": one for one in study.main(data)}
        for data in study.data
        if study.main(data)
    }
    _draw_groups(groups, leader(study.mains, "cases"), path)


def draw_regimes(study: Study, path: Path) -> None:
    """Draw the gain of each core method in each training regime: a panel for each data set."""
    groups = {
        data: {
            f"{one.student}, {one.augmentation} augmentation\n{one.epochs} epochs, batch {one.batch_size}": one
            for one in study.regimes(data)
        }
        for data in study.data
        if study.regimes(data)
    }
    _draw_groups(groups, leader([one for data in study.data for one in study.regimes(data)], "regimes"), path)


def draw_methods(study: Study, path: Path) -> None:
    """Draw the gain of every method, largest first: a row of panels for each data set, a panel for each student."""
    gains = {one.name: _gains(one, one.methods) for one in study.mains}
    rows = {data: max(len(gains[one.name]) for one in study.main(data)) for data in study.data if study.main(data)}
    columns = max(len(study.main(data)) for data in rows)
    with mpl.rc_context(STYLE):
        heights = [0.21 * count + 0.9 for count in rows.values()]
        figure = Figure(figsize=(2.7 * columns + 1, sum(heights) + 0.8))
        parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
        panels: list[Axes] = []
        for part, data in zip(parts, rows, strict=True):
            part.suptitle(title(data), fontsize=10, fontweight="bold")
            for panel, setting in zip(part.subplots(1, columns, squeeze=False)[0], study.main(data), strict=False):
                for row, (method, gain) in enumerate(gains[setting.name].items()):
                    _draw_interval(panel, gain, -row, method)
                panel.set_title(setting.size, fontsize=9)
                _name_rows(panel, list(gains[setting.name]), rows[data])
                panels.append(panel)
        _share_range(panels, [gain for found in gains.values() for gain in found.values()])
        figure.suptitle(most_and_least(study.mains), fontsize=11)
        figure.supxlabel(f"{GAIN}: {MARKS}", fontsize=9)
        _save(figure, path)


def leader(settings: Sequence[Setting], noun: str) -> str:
    """Say which core method gains most how often."""
    found = [_gains(one, CORE) for one in settings]
    winners = Counter(next(iter(gains)) for gains in found if gains)
    if not winners:
        return "No method was compared with labels alone"
    method, count = winners.most_common(1)[0]
    return f"{method} gains most over labels alone in {count} of {sum(winners.values())} {noun}"


def most_and_least(settings: Sequence[Setting]) -> str:
    """Say which methods gain most and least on average over the settings in which all methods were run."""
    most_methods = max(len(one.methods) for one in settings)
    found = [_gains(one, one.methods) for one in settings if len(one.methods) == most_methods]
    common = set.intersection(*(set(gains) for gains in found)) if found else set()
    if not common:
        return "Gains over labels alone"
    order = sorted(common, key=lambda method: (-sum(gains[method].mean for gains in found), method))
    if len(order) == 1:
        return f"Gains of {order[0]} over labels alone"
    return f"Averaged over the {len(found)} panels with all methods, {order[0]} gains most and {order[-1]} least"


def _gains(setting: Setting, methods: Iterable[str]) -> dict[str, Mean]:
    """Return the gains over labels alone, largest first."""
    found = {method: setting.difference(method, "labels") for method in methods if method != "labels"}
    return dict(sorted(((name, gain) for name, gain in found.items() if gain), key=lambda item: -item[1].mean))


def _draw_groups(groups: Mapping[str, Mapping[str, Setting]], finding: str, path: Path) -> None:
    """Draw a panel for each data set; in it, a group of rows for each setting, its methods sorted by gain."""
    labels = list(dict.fromkeys(label for settings in groups.values() for label in settings))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(groups) + 1.2, 0.85 * len(labels) + 1.5))
        panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        drawn: list[Mean] = []
        for panel, (data, settings) in zip(panels, groups.items(), strict=True):
            panel.set_title(title(data), fontweight="bold", fontsize=10)
            panel.set_xlabel(GAIN)
            for label, setting in settings.items():
                gains = _gains(setting, CORE)
                for index, (method, gain) in enumerate(gains.items()):
                    offset = 0.17 * (index - (len(gains) - 1) / 2)
                    _draw_interval(panel, gain, -labels.index(label) - offset, method)
                drawn += gains.values()
            panel.set_yticks([-row for row in range(len(labels))], labels)
            panel.set_ylim(0.5 - len(labels), 0.5)
        _share_range(panels, drawn)
        handles = [Line2D([], [], marker="o", color=colour, label=name) for name, colour in COLOURS.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), title=MARKS)
        figure.suptitle(finding, fontsize=11)
        _save(figure, path)


def _draw_interval(panel: Axes, one: Mean, y: float, method: str) -> None:
    """Draw a mean with its interval; a single seed has no interval."""
    colour = COLOURS.get(method, OTHER_COLOUR)
    ends = [[one.mean - one.low], [one.high - one.mean]] if one.n > 1 else None
    face = colour if one.sign else "white"
    panel.errorbar(one.mean, y, xerr=ends, fmt="o", color=colour, markerfacecolor=face, markersize=5, capsize=2)


def _share_range(panels: Iterable[Axes], gains: Sequence[Mean]) -> None:
    """Give all panels the same range, and mark zero."""
    ends = [end for one in gains for end in ((one.low, one.high) if one.n > 1 else (one.mean,))] or [0.0]
    margin = 0.04 * (max(0, *ends) - min(0, *ends)) or 0.01
    for panel in panels:
        panel.set_xlim(min(0, *ends) - margin, max(0, *ends) + margin)
        panel.axvline(0, color="black", linewidth=0.8)


def _name_rows(panel: Axes, names: Sequence[str], rows: int) -> None:
    """Name the rows from the top; core methods are bold. Panels side by side have room for the same number of rows."""
    panel.set_yticks([-row for row in range(len(names))], names)
    for text in panel.get_yticklabels():
        text.set_fontweight("bold" if text.get_text() in COLOURS else "normal")
    panel.set_ylim(0.4 - rows, 0.6)


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
