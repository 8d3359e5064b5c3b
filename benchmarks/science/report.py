"""Write docs/results.md, docs/methods.md and their pictures from the CSV of `make bench-science`.

python -m benchmarks.science.report benchmarks/science/runs.csv docs
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.machine import machine
from benchmarks.science.figures import draw_differences, draw_means, draw_regimes
from benchmarks.science.statistics import Mean, Ratio, gap_closed, mean_of, relative_gain
from benchmarks.science.study import METHODS, SETTING, Setting, Study, rank, read_study
from iusp.cli.console import readable_failures
from iusp.device.drift import holm
from iusp.io.files import atomic

CORE = ("labels", "kd", "sp", "iusp", "iusp+kd")
# What the paper and the prototype's record raise questions about.
COMPARISONS = (
    *(("kd", "labels"), ("sp", "labels"), ("iusp", "labels")),
    *(("iusp", "sp"), ("iusp", "kd"), ("iusp+kd", "kd"), ("iusp+kd", "iusp")),
)
QUESTIONS = {"Distil at all?": COMPARISONS[:3], "IUSP or SP?": COMPARISONS[3:4], "IUSP or KD?": COMPARISONS[4:5]}
QUESTIONS["IUSP and KD together?"] = COMPARISONS[5:]
# What goes beyond the paper is compared with what it was made from.
MADE_FROM = {"iusp_centred": "iusp", "iusp_scales": "iusp", "iusp+kd": "kd"}
# Of the targets: the data set of the first, and the third's size and share.
EMBEDDED, LARGEST, SHARE = "embedded", 100_000, 0.8
ABSENT = "–"
VERDICTS = {1: "met", 0: "null", -1: "not met"}


# Cells, tables and words


def spread(one: Mean) -> str:
    """Mean ± standard deviation (how many seeds)."""
    return f"{one.mean:.3f} ± {one.sd:.3f} ({one.n})" if one.n > 1 else f"{one.mean:.3f} (1)"


def effect(one: Mean | None) -> str:
    """A difference with its interval."""
    if one is None:
        return ABSENT
    return f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]" if one.n > 1 else f"{one.mean:+.3f} (1 seed)"


def share(ratio: Ratio) -> str:
    """A ratio in per cent with its 95 % set, in words where that is no interval."""
    value, low, high = (f"{100 * number:.0f}" for number in (ratio.value, ratio.low, ratio.high))
    if ratio.bounded:
        return f"{value} % [{low}, {high}]"
    return f"{value} %, at most {low} or at least {high}" if ratio.disjoint else f"{value} %, no bound"


def tested(family: Sequence[Mean | None]) -> list[str]:
    """Differences with p values, corrected for their number; bold where p < 0.05."""
    known = [one for one in family if one and one.n > 1]
    corrected = iter(holm([one.p for one in known]))
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
    """Rows of a table of differences, which is one family; a key holds the cells before them."""
    cells = iter(tested([one for row in rows.values() for one in row]))
    return [[*name.split(" | "), *(next(cells) for _ in row)] for name, row in rows.items()]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A Markdown table; the columns after the first `words` hold numbers."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * words}{'--:|' * (len(head) - words)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def by_size(study: Study, data: str, cell: Callable[[Setting, str], str], skip: str = "") -> str:
    """A table of methods × sizes."""
    sizes = study.main(data)
    methods = sorted({name for one in sizes for name in one.methods} - {skip}, key=rank)
    rows = [[method, *(cell(one, method) if method in one.runs else ABSENT for one in sizes)] for method in methods]
    return table(["method", *(one.size for one in sizes)], rows)


def by_sign(found: Iterable[tuple[str, int]]) -> str:
    """Say where something is above zero, below zero, or neither."""
    found = list(found)
    words = []
    for sign, said in ((1, "above zero"), (-1, "below zero"), (0, "not told from zero")):
        names = [name for name, own in found if own == sign]
        if names:
            everywhere = "everywhere" if sign else "anywhere"
            where = everywhere if len(names) == len(found) > 1 else f"at {'; '.join(names)}"
            words.append(f"{said} {where}")
    return ", and ".join(words)


# docs/results.md: what holds


def overall(signs: Sequence[int], wanted: int) -> str:
    """Met where all are above, not met where one is below, null where the seeds do not tell."""
    return VERDICTS[min(signs)] if len(signs) == wanted > 0 else f"{len(signs)} of {wanted} comparisons were run"


def targets(study: Study) -> str:
    """The targets, each with its verdict and the numbers that it rests on."""
    rows: list[list[str]] = []

    def compare(sizes: Iterable[Setting], pairs: Callable[[Setting], list[tuple[str, str]]]) -> tuple[list[int], str]:
        found: dict[str, list[tuple[str, int]]] = {}
        for setting in sizes:
            for method, other in pairs(setting):
                if one := setting.difference(method, other):
                    found.setdefault(f"{method} - {other}", []).append((setting.name, one.sign))
                    verdict = "the other way" if one.sign < 0 else VERDICTS[one.sign]
                    rows.append([f"{method} > {other}", setting.data, setting.size, verdict, effect(one)])
        words = "; ".join(f"{name} is {by_sign(signs)}" for name, signs in found.items())
        return [sign for signs in found.values() for _, sign in signs], f" {words}." if words else ""

    def best_against_kd(setting: Setting) -> list[tuple[str, str]]:
        combinations = [name for name in setting.runs if "+" in name]
        return [(setting.best(combinations), "kd")] if combinations else []

    order, order_words = compare(study.main(EMBEDDED), lambda _: [("sp", "labels"), ("iusp", "sp")])
    mains = [one for data in study.data for one in study.main(data)]
    combined, combined_words = compare(mains, best_against_kd)
    closed, closed_words = [], ""
    for data in study.data:
        if found := best_student(study, data):
            setting, method, ratio = found
            sign = int(ratio.low >= SHARE) - int(ratio.high < SHARE) if ratio.bounded else 0
            closed.append(sign)
            closed_words += f" {setting.name} by {method} closes {share(ratio)}: {VERDICTS[sign]}."
            rows.append([f"{method} closes 80 %", data, setting.size, VERDICTS[sign], share(ratio)])
    return (
        f"- **labels < SP < IUSP at every size on {EMBEDDED}: {overall(order, 2 * len(study.main(EMBEDDED)))}.**"
        f"{order_words}\n- **The best combination beats KD alone at every size ({', '.join(study.data)}): "
        f"{overall(combined, len(mains))}.**{combined_words}\n"
        f"- **The best student of at most {LARGEST:,} parameters closes 80 % of the gap between labels-only and its "
        f"teacher: {overall(closed, len(study.data))}.**{closed_words}\n\n"
        "Met: the whole interval lies where the target wants it. Null: the interval holds the bound, the seeds do not "
        "tell. Not met: it lies on the other side.\n\n"
        f"{table(['target', 'data', 'student', 'verdict', 'measured [95 %]'], rows, 4)}"
    )


def best_student(study: Study, data: str) -> tuple[Setting, str, Ratio] | None:
    """Return the student that is best on validate, and the share of the gap that it closes on test."""
    found = [
        (setting.score(method, "validate_micro_auprc").mean, setting, method)
        for setting in study.settings
        if setting.data == data and setting.parameters <= LARGEST and "labels" in setting.runs
        for method in setting.runs
        if method != "labels" and len(setting.values(method, "labels")[0]) > 1
    ]
    if not found or data not in study.teachers:
        return None
    _, setting, method = max(found, key=lambda one: one[0])
    return setting, method, gap_closed(*setting.values(method, "labels"), study.teachers[data])


def differences(settings: Iterable[Setting], method: str, other: str) -> list[tuple[str, Mean]]:
    """Paired differences by setting, where there are any with an interval."""
    found = [(setting.name, setting.difference(method, other)) for setting in settings]
    return [(name, one) for name, one in found if one and one.n > 1]


def both_ways(study: Study) -> str:
    """What holds and what does not, side by side, at every size."""
    mains = [setting for setting in study.settings if setting.main]
    others = sorted({name for one in mains for name in one.methods} - set(CORE), key=rank)
    pairs = [*COMPARISONS, *((method, "labels") for method in others)]
    text = ""
    for sign, title in ((1, "Above zero"), (-1, "The other way, below zero"), (0, "Null: the interval holds zero")):
        text += f"\n**{title}**\n\n"
        lines = ""
        for method, other in pairs:
            own = [f"{name} {effect(one)}" for name, one in differences(mains, method, other) if one.sign == sign]
            lines += f"- {method} - {other}: {'; '.join(own)}\n" if own else ""
        text += lines or "- none\n"
    return text


def advice(study: Study) -> str:
    """When to use what, as far as the numbers tell."""
    text = ""
    for question, pairs in QUESTIONS.items():
        said = ""
        for method, other in pairs:
            found = differences(study.settings, method, other)
            if not found:
                continue
            signs = {one.sign for _, one in found}
            strong = sum(p < 0.05 for p in holm([one.p for _, one in found]))
            if signs >= {1, -1}:
                rule = "It depends on the setting."
            elif signs == {0}:
                rule = "These seeds give no reason to prefer either."
            else:
                better, worse = (method, other) if 1 in signs else (other, method)
                rule = f"Prefer {better} to {worse}" + (" there." if 0 in signs else ".")
            said += (
                f"- {method} - {other} is {by_sign((name, one.sign) for name, one in found)} "
                f"({strong} of {len(found)} after Holm's correction). {rule}\n"
            )
        text += f"**{question}**\n\n{said}\n" if said else ""
    rows = []
    for setting in study.settings:
        if len(setting.methods) > 1:
            best = setting.best(setting.methods)
            against = [
                ABSENT if best == other else effect(setting.difference(best, other)) for other in ("labels", "kd")
            ]
            rows.append([setting.name, best, spread(setting.score(best)), *against])
    return (
        f"{text}**Which one, where?** The method with the best mean on validate, and what it gives on test:\n\n"
        f"{table(['setting', 'best on validate', 'test', 'against labels', 'against kd'], rows, 2)}"
    )


# docs/results.md: the tables of a data set


def paired(study: Study, data: str, other: str) -> str:
    """Paired differences of every method against one."""
    sizes = study.main(data)
    methods = sorted({name for one in sizes for name in one.methods} - {other}, key=rank)
    rows = {method: [setting.difference(method, other) for setting in sizes] for method in methods}
    return table([f"method - {other}", *(one.size for one in sizes)], tested_rows(rows))


def statistic(study: Study, data: str) -> str:
    """The paper's statistic by size."""
    rows = []
    for setting in study.main(data):
        if not {"labels", "sp", "iusp"} <= set(setting.runs):
            continue
        labels, sp, iusp = setting.values("labels", "sp", "iusp")
        if len(labels) < 2:
            continue
        gain, ratio = setting.difference("sp", "labels"), relative_gain(iusp, sp, labels)
        if gain and gain.sign < 0:
            words = "SP is below labels: the statistic says nothing"
        elif not ratio.bounded:
            words = "SP's gain is not clear of zero: hardly any ratio is excluded"
        else:
            words = "IUSP gains more" if ratio.low > 0 else "IUSP gains less" if ratio.high < 0 else "not told apart"
        rows.append([setting.size, words, effect(gain), effect(setting.difference("iusp", "labels")), share(ratio)])
    return table(["student", "in words", "SP - labels", "IUSP - labels", "statistic [95 %]"], rows, 2)


def gap(study: Study, data: str) -> str:
    """Shares of the gap between labels-only and the teacher."""

    def cell(setting: Setting, method: str) -> str:
        if "labels" not in setting.runs:
            return ABSENT
        student, labels = setting.values(method, "labels")
        return share(gap_closed(student, labels, study.teachers[data])) if len(labels) > 1 else ABSENT

    return by_size(study, data, cell, skip="labels")


def regimes(study: Study, data: str) -> str:
    """Scores and differences in every regime, and how far IUSP - SP moves from the main one."""
    settings = study.regimes(data)
    mains = {one.student: one for one in study.main(data)}
    methods = [method for method in CORE if any(method in one.runs for one in settings if not one.main)]
    pairs = [pair for pair in COMPARISONS if set(pair) <= set(methods)]
    scores, found, moved = [], {}, {}
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
            "\nWhether a regime changes what IUSP is worth beside SP: IUSP - SP there, minus IUSP - SP in the main "
            "regime, with the same seeds.\n\n"
        )
        text += table(["student", "regime", "change of IUSP - SP"], tested_rows(moved), 2)
    return text


def change(setting: Setting, main: Setting) -> Mean | None:
    """How much larger IUSP - SP is in a setting than in the main one, seed by seed."""
    here, there = (one.runs["iusp"]["micro_auprc"] - one.runs["sp"]["micro_auprc"] for one in (setting, main))
    moved = (here - there).dropna()
    return mean_of(moved) if len(moved) else None


def search(study: Study, data: str) -> str:
    """Everything that was tried on validate, and what of it the experiment used."""
    own = study.table[study.table["data"] == data]
    tried, main = own[own["stage"] == "search"], own[own["stage"] == "main"]
    if tried.empty:
        return "Not run.\n"
    used = set(zip(main["method"], main["weights"], main["learning_rate"], strict=True))
    rows, passed_over = [], []
    for key, group in sorted(tried.groupby([*SETTING, "method"]), key=lambda one: (one[0][:5], rank(one[0][5]))):
        _, student, augmentation, epochs, batch_size, method = key
        means = group.groupby(["weights", "learning_rate"], sort=False)["validate_micro_auprc"].mean()
        cells = []
        for weights, rate in sorted(means.index, key=lambda one: ([*json.loads(one[0]).values()], one[1])):
            label = " ".join(f"{name} {weight:g}" for name, weight in json.loads(weights).items())
            label += f" lr {rate:g}" if group["learning_rate"].nunique() > 1 or not label else ""
            value = f"{means[weights, rate]:.3f}"
            value = f"**{value}**" if (weights, rate) == means.idxmax() else value
            cells.append(f"{label.strip()}: {value}" + (" (used)" if (method, weights, rate) in used else ""))
        if method in set(main["method"]) and (method, *means.idxmax()) not in used:
            passed_over.append(method)
        seeds = ", ".join(map(str, sorted(group["seed"].unique())))
        where = f"{student}, {augmentation}, {epochs} epochs, batch {batch_size}"
        rows.append([method, where, seeds, "; ".join(cells), str(len(cells))])
    budgets = sorted({row[-1] for row in rows}, key=int)
    text = table(["method", "where", "seeds", "λ (or learning rate): validate micro AUPRC", "tried"], rows, 4)
    text += (
        f"\nEvery method had the same budget, {budgets[0]} values."
        if len(budgets) == 1
        else (f"\nThe budgets differ: {', '.join(budgets)} values.")
    )
    return text + (f" What was best is not used for: {', '.join(passed_over)}.\n" if passed_over else "\n")


def costs(study: Study, data: str) -> str:
    """CPU time of a run, and its ratio to labels."""

    def cell(setting: Setting, method: str) -> str:
        seconds = f"{setting.runs[method]['cpu_seconds'].median():.1f} s"
        return f"{seconds} (× {setting.cost(method):.2f})" if "labels" in setting.runs else seconds

    return by_size(study, data, cell)


def section(study: Study, data: str) -> str:
    """Everything about a data set."""
    trained = "; ".join(dict.fromkeys(one.regime for one in study.main(data)))
    text = f"\n## {data}\n\nMain regime: {trained}."
    if data in study.teachers:
        text += f" The teacher's micro AUPRC is {study.teachers[data]:.3f}."
    text += (
        f"\n\n### Micro AUPRC\n\n{by_size(study, data, lambda one, method: spread(one.score(method)))}\n"
        f"![means with 95 % intervals, {data}](pictures/science_means_{data}.png)\n\n"
        f"### Paired differences\n\n{paired(study, data, 'labels')}\n{paired(study, data, 'sp')}\n"
        f"![paired differences, {data}](pictures/science_differences_{data}.png)\n\n"
        "### The paper's statistic\n\n(IUSP - labels) / (SP - labels) - 1: by how much IUSP's gain is larger than SP's "
        f"(the paper: 27.1 % to 122.4 %), with Fieller's interval.\n\n{statistic(study, data)}\n"
    )
    if data in study.teachers:
        text += (
            "### Share of the gap closed\n\n(student - labels) / (teacher - labels), with Fieller's interval over the "
            f"students' seeds; the teacher is one network.\n\n{gap(study, data)}\n"
        )
    if study.regimes(data):
        text += (
            f"### Regimes\n\n{regimes(study, data)}\n"
            f"![differences from labels in every regime, {data}](pictures/science_regimes_{data}.png)\n\n"
        )
    return text + (
        f"### Macro AUPRC\n\n{by_size(study, data, lambda one, method: spread(one.score(method, 'macro_auprc')))}\n"
        f"### CPU time\n\nMedian of a run, and its ratio to labels.\n\n{costs(study, data)}\n"
        f"### The search\n\nMeans over seeds; bold is a row's best.\n\n{search(study, data)}"
    )


# docs/results.md: the rest


def beyond(study: Study) -> str:
    """What goes beyond the paper, against what it was made from."""
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
        corrected = holm([one.p for one in means])
        if any(p < 0.05 and one.mean > 0 for p, one in zip(corrected, means, strict=True)) and all(
            one.sign >= 0 for one in means
        ):
            kept.append(name)
        for (other, setting, _), cell in zip(found[name], tested(means), strict=True):
            rows.append([name, other, setting.name, cell, f"× {setting.cost(name, other):.2f}"])
    left = [name for name in sorted(found, key=rank) if name not in kept]
    return (
        f"{table(['what', 'against', 'where', 'difference [95 %], p', 'CPU time'], rows, 3)}\n"
        "p is corrected for the places where the same thing was tried. Worth keeping is what is better with p < 0.05 "
        "somewhere and whose interval is below zero nowhere.\n\n"
        f"- Worth keeping: {'; '.join(kept) or 'none'}.\n- Not worth keeping: {'; '.join(left) or 'none'}.\n"
    )


def reference(setting: Setting, name: str) -> str | None:
    """What something beyond the paper is compared with; a variant with its method, or with labels."""
    method, _, variant = name.partition(", ")
    if not variant:
        return MADE_FROM.get(method)
    return next((other for other in (method, f"labels, {variant}", "labels") if other in setting.runs), None)


def record(study: Study, on: str) -> str:
    """How the numbers came about."""
    runs = study.table
    stages = ", ".join(f"{number} {stage}" for stage, number in runs.groupby("stage").size().items())
    searched, compared = runs[runs["stage"] == "search"], runs[runs["stage"].isin(["main", "regime", "variant"])]

    def seeds(table: pd.DataFrame) -> str:
        return ", ".join(map(str, sorted(table["seed"].unique())))

    return (
        "- `make bench-science` trains what is missing and writes the pages; "
        "`python -m benchmarks.science.report benchmarks/science/runs.csv docs` only writes them.\n"
        f"- {len(runs)} runs ({stages}), {runs['cpu_seconds'].sum() / 3600:.1f} CPU hours.\n"
        f"- {on}.\n"
        f"- Seeds of what is compared: {seeds(compared)}; of the search: {seeds(searched) or 'none'}.\n"
    )


def results_page(study: Study, on: str) -> str:
    """Return docs/results.md.

    Args:
        study: what was measured.
        on: the machine, in words.
    """
    fewest = min(len(runs) for one in study.settings if one.main for runs in one.runs.values())
    few = (
        f"\n**Not the whole study: some methods have as few as {fewest} seeds. Read it with care; "
        "`make bench-science` goes on where the record ends.**\n"
    )
    return f"""# Results

Written by `make bench-science` from `benchmarks/science/runs.csv`; not by hand.
{few if fewest < 5 else ""}
The metric is the micro-averaged AUPRC of the coarse tags (DCASE 2019 Task 5) on test. What is chosen (λ, epoch, the
best of several) is chosen on validate. Methods are compared seed by seed: the same seed means the same initialisation
and the same batches. An interval is the 95 % interval over seeds (paired t, not corrected); it says how a result varies
with the seed, not with the test clips or the teacher. p in a table is corrected for the number of its differences
(Holm); bold is p < 0.05.

## Verdict

{targets(study)}
## What holds, and what does not

At every size, in the main regime.
{both_ways(study)}
## When to use what

Above and below zero go by the interval of the difference of micro AUPRC.

{advice(study)}{"".join(section(study, data) for data in study.data)}
## Beyond the paper

{beyond(study)}
## How it was run

{record(study, on)}"""


# docs/methods.md


def methods_page(study: Study) -> str:
    """Return docs/methods.md."""
    smallest = {data: study.main(data)[0] for data in study.data if study.main(data)}
    rows = []
    for method, words in METHODS.items():
        name = f"[`{method}`](../iusp/distillation/{words['file']})" if "file" in words else f"`{method}`"
        measured = [against_labels(setting, method) for setting in smallest.values()]
        ratios = [setting.cost(*pair) for setting, pair in zip(smallest.values(), measured, strict=True) if pair]
        gains = [
            effect(setting.difference(*pair)) if pair else "not run"
            for setting, pair in zip(smallest.values(), measured, strict=True)
        ]
        rows.append(
            [
                f"{name}<br>{words['source']}",
                f"$`{words['equation']}`$",
                words["transfers"],
                words["kept"],
                f"{words['bytes']:,}",
                f"× {np.mean(ratios):.2f}" if ratios else "not run",
                *([ABSENT] * len(gains) if method == "labels" else gains),
            ]
        )
    students = "; ".join(f"{data}: {one.size}, {one.regime}" for data, one in smallest.items())
    head = ["method", "equation", "what it transfers", "kept of a clip and view", "bytes", "CPU time"]
    return f"""# Methods

Written by `make bench-science` from `benchmarks/science/methods.yaml` and `benchmarks/science/runs.csv`; not by hand.

A student's loss is the labels' cross-entropy plus λ times the term of each method; `+` joins methods. B clips of T'
frames and K tags; z logits, y labels, σ the sigmoid; Q the frames, one row for each clip (SP) or for each frame of clip
n; rows(·) divides each row by its L2 norm; s student, t teacher; τ temperature. More is in the file of each method.

Knowledge is kept in float16; its bytes are for 8 tags and the default teacher, whose last layer has 128 channels × 32
frames × 4 bands. CPU time is that of training with kept knowledge, as a ratio to labels-only. The gain is the paired
difference of micro AUPRC on test against labels-only, mean [95 % interval over seeds], of the smallest student
({students}). A gain whose interval holds zero is not shown to be one. All sizes and regimes: [results.md](results.md).

{table([*head, *(f"gain, {data}" for data in smallest)], rows, 4)}
## Not applicable to tagging

| method of the field | why |
|---|---|
| text-speech distillation | the teacher knows the text that is spoken; sounds of a city have no transcript |
| sequence-level distillation of a decoder | the student imitates the teacher's decoded sequences; a tagger has none |
"""


def against_labels(setting: Setting, method: str) -> tuple[str, str] | None:
    """Name the run of a method and that of labels to compare it with; both of the same variant if it has only those."""
    names = [name for name in setting.runs if name.partition(", ")[0] == method]
    if not names:
        return None
    variant = names[0].removeprefix(method)
    return next(((names[0], other) for other in (f"labels{variant}", "labels") if other in setting.runs), None)


def write(csv: Path, docs: Path, on: str) -> None:
    """Write results.md, methods.md and pictures/science_*.png.

    Args:
        csv: finished runs.
        docs: folder to write.
        on: the machine that they ran on, in words.
    """
    study = read_study(csv)
    for data in study.data:
        if study.main(data):
            draw_means(study, data, docs / f"pictures/science_means_{data}.png")
            draw_differences(study, data, docs / f"pictures/science_differences_{data}.png")
        if study.regimes(data):
            draw_regimes(study, data, docs / f"pictures/science_regimes_{data}.png")
    for name, page in (("results.md", results_page(study, on)), ("methods.md", methods_page(study))):
        with atomic(docs / name) as temporary:
            temporary.write_text(page)


def main() -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, help="finished runs")
    parser.add_argument("docs", type=Path, help="folder to write")
    arguments = parser.parse_args()
    with readable_failures():
        write(arguments.csv, arguments.docs, machine())


if __name__ == "__main__":
    main()
