"""Cells and tables of the result pages."""

from collections.abc import Callable, Mapping, Sequence

from benchmarks.pages import table
from benchmarks.science.statistics import Mean, Ratio
from benchmarks.science.study import Setting, Study, rank
from iusp.device.drift import holm

ABSENT = "–"


def spread(one: Mean) -> str:
    """Return a mean ± its standard deviation, with the number of seeds in brackets."""
    return f"{one.mean:.3f} ± {one.sd:.3f} ({one.n})" if one.n > 1 else f"{one.mean:.3f} (1)"


def effect(one: Mean | None) -> str:
    """Return a difference with its interval."""
    if one is None:
        return ABSENT
    return f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]" if one.n > 1 else f"{one.mean:+.3f} (1 seed)"


def short_effect(one: Mean | None) -> str:
    """Return a difference without its interval; it is bold if the interval excludes zero."""
    if one is None:
        return ABSENT
    return f"**{one.mean:+.3f}**" if one.sign else f"{one.mean:+.3f}"


def share(ratio: Ratio) -> str:
    """Return a ratio in per cent with its 95 % set, in words if the set is not an interval."""
    value, low, high = (f"{100 * number:.0f}" for number in (ratio.value, ratio.low, ratio.high))
    if ratio.bounded:
        return f"{value} % [{low}, {high}]"
    return f"{value} %, at most {low} or at least {high}" if ratio.disjoint else f"{value} %, no bound"


def tested(family: Sequence[Mean | None]) -> list[str]:
    """Return differences with p-values that are corrected for the number of differences; bold means p < 0.05."""
    corrected = iter(holm([one.p for one in family if one and one.n > 1]))
    cells = []
    for one in family:
        cell = effect(one)
        if one and one.n > 1:
            p = next(corrected)
            cell += " p < 0.001" if p < 0.001 else f" p {p:.3f}"
            cell = f"**{cell}**" if p < 0.05 else cell
        cells.append(cell)
    return cells


def tested_rows(rows: Mapping[str, Sequence[Mean | None]]) -> list[list[str]]:
    """Return the rows of a table of differences, corrected for the number of all of them.

    Args:
        rows: differences of each row, by the cells in front of them, which are joined by ` | `.
    """
    cells = iter(tested([one for row in rows.values() for one in row]))
    return [[*name.split(" | "), *(next(cells) for _ in row)] for name, row in rows.items()]


def by_size(study: Study, data: str, cell: Callable[[Setting, str], str], skip: str = "") -> str:
    """Return a table with a row for each method and a column for each student.

    Args:
        study: what was measured.
        data: name of the data set.
        cell: returns the cell of a setting and a method.
        skip: a method without a row.
    """
    sizes = study.main(data)
    methods = sorted({name for one in sizes for name in one.methods} - {skip}, key=rank)
    rows = [[method, *(cell(one, method) if method in one.runs else ABSENT for one in sizes)] for method in methods]
    return table(["method", *(one.size for one in sizes)], rows)


def listed(words: Sequence[str]) -> str:
    """Join words: a, b and c."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
