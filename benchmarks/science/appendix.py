"""The appendix of docs/results.md: every table, for each data set."""

import json
from collections.abc import Iterator, Mapping

import pandas as pd

from benchmarks.pages import table
from benchmarks.science.conclusions import COMPARISONS
from benchmarks.science.grid import CORE
from benchmarks.science.statistics import Mean, Ratio, gap_closed, mean_of, relative_gain
from benchmarks.science.study import SETTING, Setting, Study, rank, title
from benchmarks.science.tables import ABSENT, by_size, effect, listed, share, spread, tested, tested_rows
from iusp.device.drift import holm

STAGES = {
    "main": "in the main regime",
    "regime": "in other regimes",
    "search": "in the search for the loss weights",
    "teacher": "of teachers",
    "variant": "of variants of a method",
}
"""What the runs of each stage are for."""
MADE_FROM = {"iusp_centred": "iusp", "iusp_scales": "iusp", "iusp+kd": "kd"}
"""What goes beyond the paper, and the method that it changes."""


def section(study: Study, data: str) -> str:
    """Return all tables of a data set."""
    trained = "; ".join(dict.fromkeys(one.regime for one in study.main(data)))
    parts = {
        "Micro AUPRC": _scores(study, data, "micro_auprc"),
        "Differences": f"{paired(study, data, 'labels')}\n{paired(study, data, 'sp')}",
        "The paper's statistic": (
            "The statistic is (IUSP - labels) / (SP - labels) - 1. It says by how much the gain of IUSP exceeds the "
            "gain of SP. The brackets hold Fieller's 95 % interval of this ratio. If the gain of SP may be zero, the "
            "possible values are not one interval; the table then shows two limits or *no bound*. In the IUSP paper, "
            "the statistic is between 27.1 % and 122.4 %.\n\n"
            f"{statistic(study, data)}"
        ),
    }
    if data in study.teachers:
        parts["Share of the gap closed"] = (
            "The share is (student - labels) / (teacher - labels). The brackets hold Fieller's 95 % interval over the "
            f"seeds of the student. The teacher is a single network, so it has no seeds.\n\n{gap(study, data)}"
        )
    if study.regimes(data):
        parts["Training regimes"] = regimes(study, data)
    parts |= {
        "Macro AUPRC": _scores(study, data, "macro_auprc"),
        "CPU time": "The table shows the median CPU time of a run. The brackets show this time divided by the time of "
        f"training on labels alone.\n\n{costs(study, data)}",
        "Search for the loss weights": search(study, data),
    }
    text = f"## Appendix: {title(data)}\n\nThis section is about the data set `{data}`. The main regime is: {trained}."
    if data in study.teachers:
        text += f" The micro AUPRC of the teacher is {study.teachers[data]:.3f}."
    return text + "\n" + "".join(f"\n### {heading}: {data}\n\n{part}" for heading, part in parts.items())


def _scores(study: Study, data: str, column: str) -> str:
    means = by_size(study, data, lambda one, method: spread(one.score(method, column)))
    return (
        f"The table shows the mean ± the standard deviation over seeds, and the number of seeds in brackets.\n\n{means}"
    )


def paired(study: Study, data: str, other: str) -> str:
    """Return the paired differences of every method from one."""
    sizes = study.main(data)
    methods = sorted({name for one in sizes for name in one.methods} - {other}, key=rank)
    rows = {method: [setting.difference(method, other) for setting in sizes] for method in methods}
    return table([f"method - {other}", *(one.size for one in sizes)], tested_rows(rows))


def statistic(study: Study, data: str) -> str:
    """Return the paper's statistic by size."""
    rows = []
    for setting in study.main(data):
        if not {"labels", "sp", "iusp"} <= set(setting.runs):
            continue
        labels, sp, iusp = setting.values("labels", "sp", "iusp")
        if len(labels) < 2:
            continue
        gain, ratio = setting.difference("sp", "labels"), relative_gain(iusp, sp, labels)
        gains = (effect(gain), effect(setting.difference("iusp", "labels")), share(ratio))
        rows.append([setting.size, _in_words(gain, ratio), *gains])
    return table(["student", "in words", "SP - labels", "IUSP - labels", "statistic [95 %]"], rows, 2)


def _in_words(gain: Mean | None, ratio: Ratio) -> str:
    """Say what the paper's statistic means, given SP's gain over labels."""
    if gain and gain.sign < 0:
        return "SP is worse than labels: the statistic has no meaning"
    if not ratio.bounded:
        return "SP's gain may be zero, so the statistic may have almost any value"
    return "IUSP gains more" if ratio.low > 0 else "IUSP gains less" if ratio.high < 0 else "no clear difference"


def gap(study: Study, data: str) -> str:
    """Return the shares of the gap between labels alone and the teacher."""

    def cell(setting: Setting, method: str) -> str:
        if "labels" not in setting.runs:
            return ABSENT
        student, labels = setting.values(method, "labels")
        return share(gap_closed(student, labels, study.teachers[data])) if len(labels) > 1 else ABSENT

    return by_size(study, data, cell, skip="labels")


def regimes(study: Study, data: str) -> str:
    """Return scores and differences in every regime, and how IUSP - SP changes from the main one."""
    settings = study.regimes(data)
    mains = {one.student: one for one in study.main(data)}
    methods = [method for method in CORE if any(method in one.runs for one in settings if not one.main)]
    pairs = [pair for pair in COMPARISONS if set(pair) <= set(methods)]
    scores: list[list[str]] = []
    found: dict[str, list[Mean | None]] = {}
    moved: dict[str, list[Mean | None]] = {}
    for one in settings:
        name = f"{one.student}{' (main)' if one.main else ''} | {one.regime}"
        cells = [spread(one.score(method)) if method in one.runs else ABSENT for method in methods]
        scores.append([*name.split(" | "), *cells])
        found[name] = [one.difference(*pair) for pair in pairs]
        main = mains.get(one.student)
        if main and not one.main and {"iusp", "sp"} <= set(one.runs) & set(main.runs):
            moved[name] = [change(one, main)]
    text = table(["student", "regime", *methods], scores, 2)
    text += "\n" + table(["student", "regime", *(" - ".join(pair) for pair in pairs)], tested_rows(found), 2)
    if moved:
        text += (
            "\nThe next table shows whether a regime changes the gain of IUSP over SP. The values are (IUSP - SP in "
            "the regime) - (IUSP - SP in the main regime), for the same seeds.\n\n"
        )
        text += table(["student", "regime", "change of IUSP - SP"], tested_rows(moved), 2)
    return text


def change(setting: Setting, main: Setting) -> Mean | None:
    """Return by how much IUSP - SP is larger in a setting than in the main one, seed by seed."""
    here, there = (one.runs["iusp"]["micro_auprc"] - one.runs["sp"]["micro_auprc"] for one in (setting, main))
    moved = (here - there).dropna()
    return mean_of(moved) if len(moved) else None


def costs(study: Study, data: str) -> str:
    """Return the CPU time of a run, and its ratio to labels."""

    def cell(setting: Setting, method: str) -> str:
        seconds = f"{setting.runs[method]['cpu_seconds'].median():.1f} s"
        return f"{seconds} (× {setting.cost(method):.2f})" if "labels" in setting.runs else seconds

    return by_size(study, data, cell)


def search(study: Study, data: str) -> str:
    """Return everything that was tried on validate, and what of it the main experiment uses."""
    own = study.table[study.table["data"] == data]
    tried, main = own[own["stage"] == "search"], own[own["stage"] == "main"]
    if tried.empty:
        return (
            "No search was run on this data set. The loss weights that were found on the generated scenes are used.\n"
        )
    used = set(main[["method", "weights", "learning_rate"]].itertuples(index=False, name=None))
    rows, passed_over = [], []
    for method, group in sorted(
        ((str(key[-1]), group) for key, group in tried.groupby([*SETTING, "method"])), key=lambda one: rank(one[0])
    ):
        means: dict[tuple[str, float], float] = {}
        for _, runs in group.groupby(["weights", "learning_rate"], sort=False):
            means[str(runs["weights"].iloc[0]), float(runs["learning_rate"].iloc[0])] = runs[
                "validate_micro_auprc"
            ].mean()
        best = max(means, key=means.__getitem__)
        first = group.iloc[0]
        where = f"{first['student']}, {first['augmentation']}, {first['epochs']} epochs, batch {first['batch_size']}"
        seeds = ", ".join(map(str, sorted(group["seed"].unique())))
        cells = list(_tried(method, means, used))
        rows.append([method, where, seeds, "; ".join(cells), str(len(cells))])
        if method in set(main["method"]) and (method, *best) not in used:
            passed_over.append(method)
    budgets = sorted({int(row[-1]) for row in rows})
    text = (
        "The table shows each loss weight λ that was tried, with the mean micro AUPRC on the validation clips. For "
        "`labels`, it shows learning rates (lr) instead. The highest value of a row is bold. *Used* marks the value "
        "that all other tables use.\n\n"
    )
    text += table(["method", "setting", "seeds", "λ: micro AUPRC on the validation clips", "values tried"], rows, 4)
    tried_values = listed(list(map(str, budgets)))
    same = "for every method" if len(budgets) == 1 else "depending on the method"
    text += f"\nThe number of values that were tried is {tried_values}, {same}."
    return text + (f" The best value is not used for: {', '.join(passed_over)}.\n" if passed_over else "\n")


def _tried(method: str, means: Mapping[tuple[str, float], float], used: set[tuple[str, str, float]]) -> Iterator[str]:
    """Return what was tried of a method, in ascending order of its weights.

    Args:
        method: name of the method.
        means: micro AUPRC on validate by weights (JSON) and learning rate.
        used: method, weights and learning rate of the runs of the main experiment.
    """
    several_rates = len({rate for _, rate in means}) > 1
    for weights, rate in sorted(means, key=lambda key: ([*json.loads(key[0]).values()], key[1])):
        label = " ".join(f"{name} {weight:g}" for name, weight in json.loads(weights).items())
        label += f" lr {rate:g}" if several_rates or not label else ""
        value = f"{means[weights, rate]:.3f}"
        value = f"**{value}**" if (weights, rate) == max(means, key=means.__getitem__) else value
        yield f"{label.strip()}: {value}" + (" (used)" if (method, weights, rate) in used else "")


def beyond(study: Study) -> str:
    """Return what goes beyond the paper, compared with what it was made from."""
    found: dict[str, list[tuple[str, Setting, Mean]]] = {}
    for setting in study.settings:
        for name in setting.runs:
            other = reference(setting, name)
            if other and (one := setting.difference(name, other)):
                found.setdefault(name, []).append((other, setting, one))
    if not found:
        return "Not run.\n"
    rows, kept = [], []
    for name in sorted(found, key=rank):
        means = [one for _, _, one in found[name]]
        gains = any(p < 0.05 and one.mean > 0 for p, one in zip(holm([one.p for one in means]), means, strict=True))
        if gains and all(one.sign >= 0 for one in means):
            kept.append(name)
        for (other, setting, _), cell in zip(found[name], tested(means), strict=True):
            rows.append([name, other, setting.name, cell, f"× {setting.cost(name, other):.2f}"])
    dropped = [name for name in sorted(found, key=rank) if name not in kept]
    return (
        "This section compares each idea that is not in the IUSP paper with the method that the idea changes. p is "
        "corrected for the number of settings in which the idea was tried. An idea is worth keeping if both are true:\n"
        "\n"
        "- In at least one setting, it is better with p < 0.05.\n"
        "- It is not clearly worse (the whole interval below zero) in any setting.\n\n"
        "Some ideas are methods of their own, for example `iusp_centred`; [methods.md](methods.md) describes them. The "
        "other ideas are variants of a method:\n\n"
        "- *online*: the teacher runs in the training loop.\n"
        "- *ensemble*: the student learns from the averaged knowledge of several teachers.\n"
        "- *clean knowledge*: the student gets masked and mixed clips. The teacher gets the same clips without masks "
        "and without mixing.\n"
        "- *layers*: the loss uses the last three layers instead of the last layer alone.\n"
        "- *decay*: the weights of the distillation losses fall linearly to zero.\n"
        "- *tags both*: the networks learn coarse and fine tags.\n\n"
        "The verdicts are:\n\n"
        f"- Worth keeping: {'; '.join(kept) or 'none'}.\n- Not worth keeping: {'; '.join(dropped) or 'none'}.\n\n"
        "The last column is the CPU time of the idea divided by the CPU time of the method that it is compared "
        "with.\n\n"
        f"{table(['idea', 'compared with', 'setting', 'difference [95 %], p', 'CPU time'], rows, 3)}"
    )


def reference(setting: Setting, name: str) -> str | None:
    """Return what an idea beyond the paper is compared with: a variant with its method, or with labels."""
    method, _, variant = name.partition(", ")
    if not variant:
        return MADE_FROM.get(method)
    return next((other for other in (method, f"labels, {variant}", "labels") if other in setting.runs), None)


def record(study: Study, machine: str) -> str:
    """Return how the numbers were made."""
    runs = study.table
    stages = listed([f"{number} {STAGES[str(stage)]}" for stage, number in runs.groupby("stage").size().items()])
    searched, compared = runs[runs["stage"] == "search"], runs[runs["stage"].isin(["main", "regime", "variant"])]

    def seeds(rows: pd.DataFrame) -> str:
        return ", ".join(map(str, sorted(rows["seed"].unique())))

    return (
        "- `make bench-science` trains what is missing and writes the pages. `python -m benchmarks.science "
        "--report-only` only writes the pages.\n"
        f"- The study has {len(runs)} runs: {stages}.\n"
        f"- The runs took {runs['cpu_seconds'].sum() / 3600:.1f} CPU hours on this machine: {machine}.\n"
        f"- The comparisons use the seeds {seeds(compared)}. The search uses other seeds: "
        f"{seeds(searched) or 'none'}.\n"
    )
