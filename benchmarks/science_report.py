"""Write docs/results.md, docs/methods.md and their pictures from the CSV of `make bench-science`.

python -m benchmarks.science_report benchmarks/science.csv docs
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import machine
from benchmarks.science_statistics import Mean, Ratio, gap_closed, holm, mean_of, relative_gain
from iusp.errors import InputError
from iusp.files import atomic
from iusp.plots import STYLE

METHODS: Mapping[str, Mapping[str, str]] = yaml.safe_load(Path(__file__).with_name("methods.yaml").read_text())
COLUMNS = (
    *("stage", "data", "student", "architecture", "parameters", "method", "variant", "weights", "augmentation"),
    *("epochs", "batch_size", "learning_rate", "seed", "kept_epoch", "validate_micro_auprc", "micro_auprc"),
    *("macro_auprc", "cpu_seconds"),
)
SETTING = ["data", "student", "augmentation", "epochs", "batch_size"]
# What the paper and the prototype's record raise questions about.
COMPARISONS = (
    *(("kd", "labels"), ("sp", "labels"), ("iusp", "labels")),
    *(("iusp", "sp"), ("iusp", "kd"), ("iusp+kd", "kd"), ("iusp+kd", "iusp")),
)
# What goes beyond the paper is compared with what it was made from; a variant, with its method.
MADE_FROM = {"iusp_centred": "iusp", "iusp_scales": "iusp", "iusp+kd": "kd"}
# Of the targets: the data set of the first, and the third's size and share.
EMBEDDED, LARGEST, SHARE = "embedded", 100_000, 0.8
COLOURS = {"labels": "black", "kd": "C0", "sp": "C1", "iusp": "C3", "iusp+kd": "C4"}
OTHER_COLOUR = "0.6"


@dataclass(frozen=True)
class Setting:
    """What runs must share to be compared.

    Attributes:
        data: data set.
        student: name of a size.
        parameters: of that size.
        augmentation: name of it.
        epochs: budget.
        batch_size: clips.
        main: whether the experiment's main part was run in it.
        runs: by method (a variant is `method, variant`), what was measured; indexed by seed.
    """

    data: str
    student: str
    parameters: int
    augmentation: str
    epochs: int
    batch_size: int
    main: bool
    runs: Mapping[str, pd.DataFrame]

    @property
    def regime(self) -> str:
        """What sets it apart from the other settings of the same data and student."""
        return f"{self.augmentation}, {self.epochs} epochs, batch {self.batch_size}"

    @property
    def name(self) -> str:
        """A short name for lists."""
        return f"{self.data} {self.student}" + ("" if self.main else f" ({self.regime})")

    def values(self, *methods: str, column: str = "micro_auprc") -> list[np.ndarray]:
        """Return what the methods reached with the seeds that they share, in the seeds' order."""
        table = pd.concat([self.runs[method][column] for method in methods], axis=1, join="inner").sort_index()
        return [table.iloc[:, index].to_numpy(np.float64) for index in range(len(methods))]

    def difference(self, method: str, other: str) -> Mean | None:
        """Return the paired difference, or None where the two share no seed."""
        if not {method, other} <= set(self.runs):
            return None
        a, b = self.values(method, other)
        return mean_of(a - b) if len(a) else None

    def best(self, methods: Iterable[str]) -> str:
        """Return the method with the highest mean on validate."""
        return max(methods, key=lambda method: float(self.runs[method]["validate_micro_auprc"].mean()))


@dataclass(frozen=True)
class Study:
    """Everything that was measured.

    Attributes:
        table: the CSV.
        settings: of students, sorted.
        teachers: micro AUPRC on test of the teacher that the students learn from, by data set.
    """

    table: pd.DataFrame
    settings: Sequence[Setting]
    teachers: Mapping[str, float]

    @property
    def data(self) -> list[str]:
        """Names of the data sets."""
        return sorted({setting.data for setting in self.settings})

    def main(self, data: str) -> list[Setting]:
        """The main settings of a data set, by size."""
        return [setting for setting in self.settings if setting.main and setting.data == data]


def read_study(path: Path) -> Study:
    """Read the CSV of finished runs.

    Raises:
        InputError: a column is missing, a run is there twice, or the main part has no run yet.
    """
    table = pd.read_csv(path, keep_default_na=False)
    if missing := [column for column in COLUMNS if column not in table]:
        raise InputError(f"{path}: has no column {', '.join(missing)}; write it with `make bench-science`")
    if not (table["stage"] == "main").any():
        raise InputError(f"{path}: has no run of stage main yet; run `make bench-science`")
    compared = table[table["stage"].isin(["main", "regime", "variant"])]
    key = [*SETTING, "method", "variant", "seed"]
    if compared.duplicated(key).any():
        twice = dict(compared.loc[compared.duplicated(key), key].iloc[0])
        raise InputError(f"{path}: has a run twice: {twice}; remove one of its lines")
    settings = []
    for (data, student, augmentation, epochs, batch_size), rows in compared.groupby(SETTING):
        names = rows["method"] + rows["variant"].map(lambda variant: f", {variant}" if variant else "")
        runs = {name: own.set_index("seed").sort_index() for name, own in rows.groupby(names)}
        runs = {name: runs[name] for name in sorted(runs, key=_rank)}
        main = bool((rows["stage"] == "main").any())
        parameters = int(rows["parameters"].min())
        settings.append(Setting(data, student, parameters, augmentation, epochs, batch_size, main, runs))
    settings.sort(key=lambda one: (one.data, one.parameters, one.student, not one.main, one.regime))
    # Other teachers (of an ensemble, of other tags) have a variant or a higher seed.
    teachers = table[(table["stage"] == "teacher") & (table["variant"] == "")].sort_values("seed", kind="stable")
    return Study(table, settings, dict(teachers.groupby("data")["micro_auprc"].first()))


def _rank(name: str) -> tuple[int, int, str]:
    """Sort single methods as methods.yaml does, then combinations, then variants."""
    method, _, variant = name.partition(", ")
    place = list(METHODS).index(method) if method in METHODS else len(METHODS)
    return (bool(variant), place, name)


# Words and cells


def _sized(setting: Setting) -> str:
    return f"{setting.student} ({setting.parameters:,})"


def _spread(values: np.ndarray) -> str:
    """Mean ± standard deviation (how many seeds)."""
    one = mean_of(values)
    return f"{one.mean:.3f} ± {one.sd:.3f} ({one.n})" if one.n > 1 else f"{one.mean:.3f} (1)"


def _effect(one: Mean) -> str:
    """A difference with its interval."""
    return f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]" if one.n > 1 else f"{one.mean:+.3f} (one seed)"


def _share(ratio: Ratio) -> str:
    """A ratio in per cent with its set, in words where that is no interval."""
    value = f"{100 * ratio.value:.0f} %"
    low, high = f"{100 * ratio.low:.0f}", f"{100 * ratio.high:.0f}"
    if ratio.bounded:
        return f"{value} [{low}, {high}]"
    return f"{value}, at most {low} or at least {high}" if ratio.disjoint else f"{value}, no bound"


def _verdict(one: Mean) -> str:
    return {1: "holds", 0: "null", -1: "the other way"}[one.sign]


def _overall(signs: Sequence[int]) -> str:
    """met: all above zero; not met: one below; null: neither."""
    if not signs:
        return "not run"
    return "not met" if min(signs) < 0 else "met" if min(signs) > 0 else "null"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A Markdown table whose first `words` columns are left-aligned."""
    lines = [head, ["---"] * words + ["--:"] * (len(head) - words), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _differences(
    rows: Mapping[str, Sequence[Mean | None]],
) -> dict[str, list[str]]:
    """Cells of paired differences with p values, corrected for all of them; bold where p < 0.05."""
    family = [one for row in rows.values() for one in row if one]
    corrected = dict(zip(map(id, family), holm([one.p for one in family]), strict=True))

    def cell(one: Mean | None) -> str:
        if one is None or one.n == 1:
            return _effect(one) if one else "–"
        p = corrected[id(one)]
        text = f"{_effect(one)} {'p < 0.001' if p < 0.001 else f'p {p:.3f}'}"
        return f"**{text}**" if p < 0.05 else text

    return {name: [cell(one) for one in row] for name, row in rows.items()}


def _tally(found: Sequence[tuple[str, Mean]]) -> str:
    """Say where differences are above zero, below, or neither."""
    names = {sign: [name for name, one in found if one.sign == sign] for sign in (1, -1, 0)}
    corrected = holm([one.p for _, one in found])
    strong = sum(p < 0.05 for p in corrected)
    parts = [
        f"{words} in {len(names[sign])} of {len(found)} settings" + (f": {'; '.join(names[sign])}" if names[sign] else "")
        for sign, words in ((1, "above zero"), (-1, "below zero"), (0, "not told from zero"))
        if names[sign]
    ]
    return f"{'. '.join(parts)}. After Holm's correction {strong} of the {len(found)} differ from zero."


# docs/results.md


def _targets(study: Study) -> str:
    """The issue's targets, each with its verdict and the numbers that it rests on."""
    lines, rows = [], []

    signs, words = [], []
    for setting in study.main(EMBEDDED):
        for method, other in (("sp", "labels"), ("iusp", "sp")):
            if one := setting.difference(method, other):
                signs.append(one.sign)
                words.append(f"{setting.student}: {method} - {other} {_verdict(one)}")
                rows.append([f"{method} > {other}", setting.data, _sized(setting), _effect(one), _verdict(one)])
    lines.append(f"- **labels < SP < IUSP at every size, {EMBEDDED}: {_overall(signs)}.** {_sentence(words)}")

    signs, words = [], []
    for setting in (one for data in study.data for one in study.main(data)):
        combinations = [name for name in setting.runs if "+" in name]
        if combinations and (one := setting.difference(best := setting.best(combinations), "kd")):
            signs.append(one.sign)
            words.append(f"{setting.name}: {best} {_verdict(one)}")
            rows.append([f"{best} > kd", setting.data, _sized(setting), _effect(one), _verdict(one)])
    lines.append(
        f"- **The best combination beats KD alone at every size, {' and '.join(study.data)}: {_overall(signs)}.** "
        f"{_sentence(words)}"
    )

    signs, words = [], []
    for data in study.data:
        if found := _best_student(study, data):
            setting, method, ratio = found
            sign = int(ratio.low >= SHARE) - int(ratio.high < SHARE) if ratio.bounded else 0
            verdict = {1: "met", 0: "null", -1: "not met"}[sign]
            signs.append(sign)
            words.append(f"{data}: {verdict}, {_share(ratio)} by {setting.student} ({setting.regime}) with {method}")
            rows.append([f"{method} closes ≥ {SHARE:.0%}", data, _sized(setting), _share(ratio), verdict])
    lines.append(
        f"- **The best student of at most {LARGEST:,} parameters closes {SHARE:.0%} of the gap between labels-only and "
        f"its teacher: {_overall(signs)}.** {_sentence(words)}"
    )
    return "\n".join(lines) + "\n\n" + _table(["target", "data", "student", "measured [95 %]", "verdict"], rows, 3)


def _sentence(words: Sequence[str]) -> str:
    return f"{'; '.join(words)}." if words else ""


def _best_student(study: Study, data: str) -> tuple[Setting, str, Ratio] | None:
    """Return the student that is best on validate, and the share of the gap that it closes on test."""
    if data not in study.teachers:
        return None
    small = [one for one in study.settings if one.data == data and one.parameters <= LARGEST and "labels" in one.runs]
    found = [
        (float(setting.runs[method]["validate_micro_auprc"].mean()), setting, method)
        for setting in small
        for method in setting.runs
        if method != "labels" and len(setting.values(method, "labels")[0]) > 1
    ]
    if not found:
        return None
    _, setting, method = max(found, key=lambda one: one[0])
    return setting, method, gap_closed(*setting.values(method, "labels"), study.teachers[data])


def _compared(settings: Iterable[Setting], method: str, other: str) -> list[tuple[str, Mean]]:
    return [
        (setting.name, one) for setting in settings if (one := setting.difference(method, other)) is not None and one.n > 1
    ]


def _both_ways(study: Study) -> str:
    """What holds and what does not, side by side, in the main settings."""
    settings = [setting for setting in study.settings if setting.main]
    text = {1: "", -1: "", 0: ""}
    for method, other in COMPARISONS:
        for sign in text:
            found = [f"{where} {_effect(one)}" for where, one in _compared(settings, method, other) if one.sign == sign]
            if found:
                text[sign] += f"- {method} - {other}: {'; '.join(found)}\n"
    none = "- none\n"
    return (
        f"**Above zero** (95 % interval of the paired difference of micro AUPRC):\n\n{text[1] or none}\n"
        f"**The other way**, below zero:\n\n{text[-1] or none}\n"
        f"**Null**, the interval holds zero:\n\n{text[0] or none}"
    )


def _by_size(study: Study, data: str, cell: Callable[[Setting, str], str | None], skip: str = "") -> str:
    """A table of methods × sizes of the main settings, without variants."""
    sizes = study.main(data)
    methods = sorted({name for one in sizes for name in one.runs if ", " not in name and name != skip}, key=_rank)
    rows = [
        [method, *((cell(setting, method) if method in setting.runs else None) or "–" for setting in sizes)]
        for method in methods
    ]
    return _table(["method", *map(_sized, sizes)], rows)


def _scores(study: Study, data: str, column: str) -> str:
    return _by_size(study, data, lambda setting, method: _spread(setting.runs[method][column].to_numpy()))


def _paired(study: Study, data: str, other: str) -> str:
    """The table of paired differences against one method."""
    sizes = study.main(data)
    methods = sorted({name for one in sizes for name in one.runs if ", " not in name and name != other}, key=_rank)
    rows = {method: [setting.difference(method, other) for setting in sizes] for method in methods}
    cells = _differences(rows)
    return _table([f"method - {other}", *map(_sized, sizes)], [[name, *row] for name, row in cells.items()])


def _statistic(study: Study, data: str) -> str:
    """The paper's statistic by size."""
    rows = []
    for setting in study.main(data):
        if not {"labels", "sp", "iusp"} <= set(setting.runs):
            continue
        labels, sp, iusp = setting.values("labels", "sp", "iusp")
        if len(labels) < 2:
            continue
        gain = mean_of(sp - labels)
        ratio = relative_gain(iusp, sp, labels)
        if ratio.bounded and gain.sign > 0:
            words = "IUSP gains more" if ratio.low > 0 else "IUSP gains less" if ratio.high < 0 else "not told apart"
        elif gain.sign < 0:
            words = "SP is below labels: the statistic says nothing"
        else:
            words = "SP's gain is not clear of zero: any ratio is possible"
        rows.append([_sized(setting), _effect(gain), _effect(mean_of(iusp - labels)), _share(ratio), words])
    return _table(["student", "SP - labels", "IUSP - labels", "statistic [95 %]", "in words"], rows)


def _gap(study: Study, data: str) -> str:
    teacher = study.teachers[data]

    def cell(setting: Setting, method: str) -> str | None:
        if "labels" not in setting.runs:
            return None
        values = setting.values(method, "labels")
        return _share(gap_closed(*values, teacher)) if len(values[0]) > 1 else None

    return _by_size(study, data, cell, skip="labels")


def _regime_settings(study: Study, data: str) -> list[Setting]:
    """Settings beside the main one, each student's after its main one."""
    others = [one for one in study.settings if one.data == data and not one.main and len(one.runs) > 1]
    students = {one.student for one in others}
    return [one for one in study.settings if one.student in students and (one in others or one in study.main(data))]


def _regimes(study: Study, data: str) -> str:
    """Scores and differences in every regime, and how far IUSP - SP moves from the main one."""
    settings = _regime_settings(study, data)
    asked = [method for method in COLOURS if any(method in one.runs and not one.main for one in settings)]
    rows = [
        [
            one.student + (" (main)" if one.main else ""),
            one.regime,
            *(_spread(one.runs[method]["micro_auprc"].to_numpy()) if method in one.runs else "–" for method in asked),
        ]
        for one in settings
    ]
    text = _table(["student", "regime", *asked], rows, 2)
    pairs = [pair for pair in COMPARISONS if set(pair) <= set(asked)]
    differences: dict[str, list[Mean | None]] = {
        f"{one.student} | {one.regime}": [one.difference(*pair) for pair in pairs] for one in settings
    }
    head = ["student", "regime", *(f"{method} - {other}" for method, other in pairs)]
    text += "\n" + _table(head, [[name, *row] for name, row in _differences(differences).items()], 2)
    moved: dict[str, list[Mean | None]] = {}
    mains = {one.student: one for one in study.main(data)}
    for one in settings:
        main = mains.get(one.student)
        if main and not one.main and {"iusp", "sp"} <= set(one.runs) & set(main.runs):
            here, there = (
                setting.runs["iusp"]["micro_auprc"] - setting.runs["sp"]["micro_auprc"] for setting in (one, main)
            )
            change = (here - there).dropna().to_numpy()
            moved[f"{one.student} | {one.regime}"] = [mean_of(change) if len(change) else None]
    if moved:
        text += (
            "\nWhether a regime changes what IUSP is worth beside SP: IUSP - SP there minus IUSP - SP in the main "
            "regime, same seeds.\n\n"
        )
        text += _table(
            ["student", "regime", "change of IUSP - SP"],
            [[name, *row] for name, row in _differences(moved).items()],
            2,
        )
    return text


def _beyond(study: Study) -> str:
    """What goes beyond the paper, against what it was made from."""
    rows: dict[str, list[Mean | None]] = {}
    signs: dict[str, list[int]] = {}
    costs = {}
    for setting in study.settings:
        for name in setting.runs:
            method, _, variant = name.partition(", ")
            reference = method if variant else MADE_FROM.get(method, "")
            if one := setting.difference(name, reference):
                key = f"{name} | {reference} | {setting.name}"
                rows[key] = [one]
                costs[key] = f"{_cost(setting, name, reference):.2f}"
                signs.setdefault(name, []).append(one.sign)
    if not rows:
        return "Not run.\n"
    cells = _differences(rows)
    text = _table(
        ["what", "against", "where", "difference [95 %] p (Holm)", "CPU time, ratio"],
        [[key, *cells[key], costs[key]] for key in sorted(rows, key=lambda key: _rank(key.partition(" | ")[0]))],
        3,
    )
    kept = {name: 1 in found and -1 not in found for name, found in signs.items()}
    lists = {
        helps: ", ".join(f"`{name}`" for name in sorted(kept, key=_rank) if kept[name] is helps) or "none"
        for helps in (True, False)
    }
    return (
        f"{text}\nKept is what is above zero (its interval) somewhere and below zero nowhere: {lists[True]}. "
        f"Not kept: {lists[False]}.\n"
    )


def _weights(text: str) -> str:
    return " ".join(f"{name} {weight:g}" for name, weight in json.loads(text or "{}").items())


def _search(study: Study, data: str) -> str:
    """Everything that was tried on validate, and what of it the experiment used."""
    tried = study.table[(study.table["stage"] == "search") & (study.table["data"] == data)]
    if tried.empty:
        return "Not run.\n"
    main = study.table[(study.table["stage"] == "main") & (study.table["data"] == data)]
    used = set(zip(main["method"], main["weights"].map(_weights), main["learning_rate"], strict=True))
    rows, counts = [], {}
    groups = tried.groupby([*SETTING, "method", "variant"])
    for key, own in sorted(groups, key=lambda one: (one[0][:5], _rank(one[0][5] + one[0][6] * bool(one[0][6])))):
        _, student, augmentation, epochs, batch_size, method, variant = key
        means = own.groupby(["weights", "learning_rate"])["validate_micro_auprc"].mean()
        # By rising weight: `{"kd": 3}` before `{"kd": 10}`.
        order = sorted(means.index, key=lambda one: (list(json.loads(one[0] or "{}").values()), one[1]))
        cells = []
        for weights, rate in order:
            label = f"{_weights(weights)} lr {rate:g}".strip()
            value = f"{means[weights, rate]:.3f}"
            best = f"**{value}**" if (weights, rate) == means.idxmax() else value
            cells.append(f"{label}: {best}" + (" (used)" if (method, _weights(weights), rate) in used else ""))
        name = f"{method}, {variant}" if variant else method
        counts[name] = len(order)
        seeds = ", ".join(map(str, sorted(own["seed"].unique())))
        where = f"{student}, {augmentation}, {epochs} epochs, batch {batch_size}"
        rows.append([name, where, "; ".join(cells), seeds, str(len(order))])
    budgets = sorted(set(counts.values()))
    same = f"Every method tried {budgets[0]} values." if len(budgets) == 1 else (
        "The budget was not the same: " + "; ".join(
            f"{budget} values for {', '.join(name for name, count in counts.items() if count == budget)}"
            for budget in budgets
        ) + "."
    )
    return _table(["method", "where", "λ and learning rate: validate micro AUPRC", "seeds", "values"], rows, 4) + f"\n{same}\n"


def _cost(setting: Setting, method: str, other: str = "labels") -> float:
    """Ratio of medians of CPU time."""
    return float(setting.runs[method]["cpu_seconds"].median() / setting.runs[other]["cpu_seconds"].median())


def _costs(study: Study, data: str) -> str:
    def cell(setting: Setting, method: str) -> str:
        seconds = f"{setting.runs[method]['cpu_seconds'].median():.1f} s"
        return f"{seconds} (× {_cost(setting, method):.2f})" if "labels" in setting.runs else seconds

    return _by_size(study, data, cell)


def _advice(study: Study) -> str:
    """When to use what, as far as the numbers tell."""
    questions = (
        ("Distil at all?", (("kd", "labels"), ("sp", "labels"), ("iusp", "labels"))),
        ("IUSP or SP?", (("iusp", "sp"),)),
        ("IUSP or KD?", (("iusp", "kd"),)),
        ("IUSP and KD together?", (("iusp+kd", "kd"), ("iusp+kd", "iusp"))),
    )
    text = ""
    for question, pairs in questions:
        parts = []
        for method, other in pairs:
            found = _compared(study.settings, method, other)
            if not found:
                continue
            signs = {one.sign for _, one in found}
            if signs >= {1, -1}:
                rule = "It depends on the setting."
            elif 1 in signs:
                rule = f"Take {method} rather than {other} there; elsewhere nothing speaks against it."
                rule = f"Take {method} rather than {other}." if signs == {1} else rule
            elif -1 in signs:
                rule = f"Take {other} rather than {method}."
            else:
                rule = "These seeds give no reason to prefer either."
            parts.append(f"{method} - {other} is {_tally(found)} {rule}")
        if parts:
            text += f"**{question}** {' '.join(parts)}\n\n"
    text += "**Which one, where?** The single method or combination that is best on validate, and what it gives on test:\n\n"
    rows = []
    for setting in study.settings:
        methods = [method for method in setting.runs if ", " not in method]
        if len(methods) < 2:
            continue
        best = setting.best(methods)
        row = [f"{setting.data} {_sized(setting)}", setting.regime, best]
        row.append(_spread(setting.runs[best]["micro_auprc"].to_numpy()))
        for other in ("labels", "kd"):
            one = None if best == other else setting.difference(best, other)
            row.append(f"{_effect(one)}" if one else "–")
        rows.append(row)
    return text + _table(["student", "regime", "best on validate", "test", "- labels", "- kd"], rows, 3)


def _record(study: Study, on: str) -> str:
    """How the numbers came about."""
    table = study.table
    count = ", ".join(f"{number} {stage}" for stage, number in table["stage"].value_counts(sort=False).sort_index().items())
    seeds = sorted({int(seed) for one in study.settings for runs in one.runs.values() for seed in runs.index})
    searched = sorted({int(seed) for seed in table.loc[table["stage"] == "search", "seed"]})
    text = (
        f"- `make bench-science` runs everything, resumes where it was stopped, and writes this page; "
        f"`python -m benchmarks.science_report benchmarks/science.csv docs` writes the page alone.\n"
        f"- {on}.\n"
        f"- {len(table)} runs ({count}), {table['cpu_seconds'].sum() / 3600:.1f} CPU hours.\n"
        f"- Seeds of what is compared: {', '.join(map(str, seeds))}"
    )
    return text + (f"; of the search: {', '.join(map(str, searched))}.\n" if searched else ".\n")


def results_page(study: Study, on: str) -> str:
    """Return docs/results.md.

    Args:
        study: what was measured.
        on: the machine, in words.
    """
    fewest = min(len(runs) for data in study.data for one in study.main(data) for runs in one.runs.values())
    few = (
        f"\n**A quick run: some results rest on {fewest} seed{'s' if fewest > 1 else ''}, fewer than 5. It shows that the "
        "experiment runs, not which method is better.**\n"
        if fewest < 5
        else ""
    )
    text = f"""# Results

Written by `make bench-science` from `benchmarks/science.csv`; not by hand.
{few}
The metric is the micro-averaged AUPRC of the coarse tags (DCASE 2019 Task 5) on test. What is chosen (weights, epochs,
the best of several) is chosen on validate. Methods are compared seed by seed: with the same seed they share
initialisation and batches. Intervals are 95 % intervals over seeds (paired t, not corrected); they say how the result
varies with the seed, not with the test clips or the teacher. p values in tables are corrected for the number of
differences in the table (Holm); bold is p < 0.05.

## Verdict

{_targets(study)}
## What holds, and what does not

The main regime, at every size.

{_both_ways(study)}
## When to use what

"Above" and "below zero" go by the interval of each difference.

{_advice(study)}"""
    for data in study.data:
        text += f"\n## {data}\n"
        if data in study.teachers:
            text += f"\nThe teacher reaches {study.teachers[data]:.3f}.\n"
        regimes = sorted({f"{one.student}: {one.regime}" for one in study.main(data)})
        text += (
            f"\nMain regime: {'; '.join(regimes)}.\n\n"
            f"### Micro AUPRC\n\nMean ± standard deviation (seeds).\n\n{_scores(study, data, 'micro_auprc')}\n"
            f"![mean micro AUPRC with 95 % intervals](pictures/science_means_{data}.png)\n\n"
            f"### Paired differences\n\n{_paired(study, data, 'labels')}\n{_paired(study, data, 'sp')}\n"
            f"![paired differences against labels](pictures/science_differences_{data}.png)\n\n"
            "### The paper's statistic\n\n(IUSP - labels) / (SP - labels) - 1, by how much IUSP's gain is larger than "
            "SP's (the paper: 27.1 % to 122.4 %), with Fieller's interval.\n\n"
            f"{_statistic(study, data)}\n"
        )
        if data in study.teachers:
            text += (
                "### Share of the gap closed\n\n(student - labels) / (teacher - labels), with Fieller's interval over the "
                f"students' seeds; the teacher is one network.\n\n{_gap(study, data)}\n"
            )
        if _regime_settings(study, data):
            text += (
                f"### Regimes\n\n{_regimes(study, data)}\n"
                f"![differences from labels by regime](pictures/science_regimes_{data}.png)\n\n"
            )
        text += (
            f"### Macro AUPRC\n\n{_scores(study, data, 'macro_auprc')}\n"
            f"### CPU time of a run\n\nMedian, and its ratio to labels.\n\n{_costs(study, data)}\n"
            f"### The search\n\nMean over seeds on validate; bold is each row's best.\n\n{_search(study, data)}"
        )
    text += f"\n## Beyond the paper\n\n{_beyond(study)}\n## How it was run\n\n{_record(study, on)}"
    return text


# docs/methods.md


def methods_page(study: Study) -> str:
    """Return docs/methods.md."""
    smallest = {data: study.main(data)[0] for data in study.data if study.main(data)}
    rows = []
    for method, words in METHODS.items():
        name = f"[`{method}`](../iusp/distillation/{words['file']})" if "file" in words else f"`{method}`"
        ratios = [_cost(one, method) for one in smallest.values() if {method, "labels"} <= set(one.runs)]
        gains = [one.difference(method, "labels") for one in smallest.values()] if method != "labels" else []
        rows.append(
            [
                f"{name}<br>{words['source']}",
                f"$`{words['equation']}`$",
                words["transfers"],
                words["kept"],
                f"{words['bytes']:,}",
                f"× {np.median(ratios):.2f}" if ratios else "not run",
                *(_effect(one) if one else "" if method == "labels" else "not run" for one in gains or [None] * len(smallest)),
            ]
        )
    students = "; ".join(f"{data}: {_sized(one)}, {one.regime}" for data, one in smallest.items())
    head = ["method", "equation", "what it transfers", "kept per clip and view", "bytes", "CPU time"]
    head += [f"gain, {data}" for data in smallest]
    return f"""# Methods

Written by `make bench-science` from `benchmarks/methods.yaml` and `benchmarks/science.csv`; not by hand.

The loss is the labels' cross-entropy plus λ times each method's term. B clips of T' frames and K tags; z logits, y
labels, σ the sigmoid; Q the frames (flattened to one row per clip, or one row per frame of clip n); rows(·) divides
each row by its L2 norm; s student, t teacher; τ temperature. Knowledge is stored in float16; bytes are for 8 tags and the
default teacher, whose last layer has 128 channels of 32 frames × 4 bands.

CPU time is that of training, as a ratio to labels-only with cached knowledge. The gain is the paired difference of micro
AUPRC on test against labels-only, mean [95 %] over seeds, of the smallest student ({students}). A gain
whose interval holds zero is not shown. All sizes and regimes: [results.md](results.md).

{_table(head, rows, 4)}
## Beyond these

| method of the field | why it is not here |
|---|---|
| combinations | any of the above joined by `+`: their terms are added |
| text-speech distillation | the teacher's knowledge is of a text that goes with the sound; tags of city sounds have no transcript |
| sequence-level distillation of a decoder | a student imitates the teacher's decoded sequences; a tagger has no decoder and puts out one vector per clip |
"""


# Pictures


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def _dot(panel: Axes, one: Mean, y: float, colour: str, filled: bool = True) -> None:
    """A mean with its interval; of a single seed, without."""
    panel.errorbar(
        one.mean,
        y,
        xerr=[[one.mean - one.low], [one.high - one.mean]] if one.n > 1 else None,
        fmt="o",
        color=colour,
        markerfacecolor=colour if filled else "white",
        markersize=5,
        capsize=2,
        elinewidth=1.3,
    )


def _panels(sizes: Sequence[Setting], rows: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(3.2 * len(sizes) + 0.6, 0.23 * rows + 1.1))
    panels = list(figure.subplots(1, len(sizes), squeeze=False)[0])
    for panel, setting in zip(panels, sizes, strict=True):
        panel.set_title(f"{setting.student}, {setting.parameters:,} parameters", fontsize=9)
    return figure, panels


def _label(panel: Axes, names: Sequence[str]) -> None:
    """Name the rows from the top; the four that all questions are about are bold."""
    panel.set_yticks([-row for row in range(len(names))], names)
    for text in panel.get_yticklabels():
        text.set_fontweight("bold" if text.get_text() in COLOURS else "normal")
    panel.set_ylim(-len(names) + 0.4, 0.6)


def draw_means(study: Study, data: str, path: Path) -> None:
    """Draw every method's mean with its interval, best first, a panel for each size."""
    sizes = study.main(data)
    with mpl.rc_context(STYLE):
        figure, panels = _panels(sizes, max(len(one.runs) for one in sizes))
        for panel, setting in zip(panels, sizes, strict=True):
            means = {
                name: mean_of(runs["micro_auprc"].to_numpy()) for name, runs in setting.runs.items() if ", " not in name
            }
            names = sorted(means, key=lambda name: -means[name].mean)
            for row, name in enumerate(names):
                _dot(panel, means[name], -row, COLOURS.get(name, OTHER_COLOUR))
            if data in study.teachers:
                panel.axvline(study.teachers[data], color="black", linestyle="--", linewidth=1)
            _label(panel, names)
        figure.supxlabel("micro AUPRC on test, mean and 95 % interval over seeds; dashed: the teacher", fontsize=9)
        _save(figure, path)


def draw_differences(study: Study, data: str, path: Path) -> None:
    """Draw paired differences against labels, and IUSP against SP, a panel for each size."""
    sizes = study.main(data)
    with mpl.rc_context(STYLE):
        figure, panels = _panels(sizes, max(len(one.runs) for one in sizes))
        for panel, setting in zip(panels, sizes, strict=True):
            found = {name: setting.difference(name, "labels") for name in setting.runs if ", " not in name}
            rows = {name: one for name, one in found.items() if one and name != "labels"}
            rows = dict(sorted(rows.items(), key=lambda item: -item[1].mean))
            if one := setting.difference("iusp", "sp"):
                rows["iusp - sp"] = one
                panel.axhline(-len(rows) + 1.5, color="0.6", linewidth=0.8)
            for row, (name, one) in enumerate(rows.items()):
                _dot(panel, one, -row, COLOURS.get(name.partition(" ")[0], OTHER_COLOUR), one.sign != 0)
            panel.axvline(0, color="black", linewidth=0.8)
            _label(panel, list(rows))
        figure.supxlabel(
            "difference of micro AUPRC from labels, mean and 95 % interval; filled: clear of zero", fontsize=9
        )
        _save(figure, path)


def draw_regimes(study: Study, data: str, path: Path) -> None:
    """Draw the differences of the core methods from labels in every regime."""
    settings = _regime_settings(study, data)
    methods = [name for name in COLOURS if name != "labels" and any(name in one.runs for one in settings)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 0.2 * len(settings) * (len(methods) + 1) + 1.2))
        panel: Axes = figure.subplots()
        for row, setting in enumerate(settings):
            for index, method in enumerate(methods):
                if one := setting.difference(method, "labels"):
                    offset = 0.7 * (index + 0.5) / len(methods) - 0.35
                    _dot(panel, one, -row - offset, COLOURS[method], one.sign != 0)
        names = [f"{one.student}{' (main)' if one.main else ''}\n{one.regime}" for one in settings]
        panel.set_yticks([-row for row in range(len(settings))], names)
        panel.set_ylim(-len(settings) + 0.5, 0.5)
        panel.axvline(0, color="black", linewidth=0.8)
        for method in methods:
            panel.plot([], [], "o", color=COLOURS[method], label=method)
        figure.legend(loc="outside upper center", ncols=len(methods))
        panel.set_xlabel("difference of micro AUPRC from labels, mean and 95 % interval; filled: clear of zero")
        _save(figure, path)


def write(table: Path, docs: Path, on: str) -> None:
    """Write results.md, methods.md and pictures/science_*.png.

    Args:
        table: CSV of finished runs.
        docs: folder to write.
        on: the machine that they ran on, in words.
    """
    study = read_study(table)
    for data in study.data:
        draw_means(study, data, docs / f"pictures/science_means_{data}.png")
        draw_differences(study, data, docs / f"pictures/science_differences_{data}.png")
        if _regime_settings(study, data):
            draw_regimes(study, data, docs / f"pictures/science_regimes_{data}.png")
    for name, page in (("results.md", results_page(study, on)), ("methods.md", methods_page(study))):
        with atomic(docs / name) as temporary:
            temporary.write_text(page)


def main() -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="CSV of finished runs")
    parser.add_argument("docs", type=Path, help="folder to write")
    arguments = parser.parse_args()
    write(arguments.table, arguments.docs, machine())


if __name__ == "__main__":
    main()
