"""What the study shows: the first part of docs/results.md."""

from collections import Counter
from collections.abc import Iterable, Sequence

from benchmarks.pages import table
from benchmarks.science.grid import CORE
from benchmarks.science.statistics import Mean
from benchmarks.science.study import Setting, Study, title
from benchmarks.science.tables import ABSENT, effect, listed, short_effect, spread
from iusp.device.drift import holm

COMPARISONS = (
    *(("kd", "labels"), ("sp", "labels"), ("iusp", "labels")),
    *(("iusp", "sp"), ("iusp", "kd"), ("iusp+kd", "kd"), ("iusp+kd", "iusp")),
)
"""Pairs of core methods that the paper and the prototype raise questions about."""


def conclusions(study: Study) -> str:
    """Return one list item for each question: which method is better where, and which one to use."""
    sentences = [
        _help(study.mains),
        _answer(study, "IUSP or KD?", "iusp", "kd"),
        _answer(study, "IUSP or SP?", "iusp", "sp"),
        _answer(study, "IUSP and KD together, or KD alone?", "iusp+kd", "kd"),
        _recommendation(study.mains),
    ]
    return "".join(f"- {sentence}\n" for sentence in sentences if sentence)


def name(method: str) -> str:
    """Return the name of a core method, for a sentence."""
    return "labels alone" if method == "labels" else method.upper()


def _help(settings: Sequence[Setting]) -> str:
    """Say how often each single method beats labels alone."""
    wins: list[str] = []
    for method in ("kd", "iusp", "sp"):
        if signs := [gain.sign for one in settings if (gain := one.difference(method, "labels"))]:
            wins.append(f"{name(method)} beats labels alone in {signs.count(1)} of {len(signs)} cases")
    if not wins:
        return ""
    return f"**Does distillation help?** {listed(wins)}. A case is one student on one data set."


def _answer(study: Study, question: str, method: str, other: str) -> str:
    """Say for each data set where a method beats another."""
    answers = []
    for data in study.data:
        found = {one.student: gain.sign for one in study.main(data) if (gain := one.difference(method, other))}
        parts = [
            f"{words} for {_students([student for student, own in found.items() if own == sign], len(found), sign)}"
            for sign, words in (
                (1, f"{name(method)} beats {name(other)}"),
                (-1, f"{name(other)} beats {name(method)}"),
                (0, "there is no clear difference"),
            )
            if sign in found.values()
        ]
        if parts:
            answers.append(f"On {title(data)}, {'; '.join(parts)}.")
    return " ".join([f"**{question}**", *answers]) if answers else ""


def _students(names: Sequence[str], total: int, sign: int) -> str:
    if len(names) == total > 1:
        return "every student" if sign else "any student"
    return f"the {listed(names)} student{'s' if len(names) > 1 else ''}"


def _recommendation(settings: Sequence[Setting]) -> str:
    """Name the core method that is best on validate most often, and the cases in which another one is."""
    best = [(one, one.best([method for method in one.methods if method in CORE])) for one in settings]
    winner, times = Counter(method for _, method in best).most_common(1)[0]
    text = (
        f"**Which method should you use?** On the validation clips, {name(winner)} has the highest mean of the methods "
        f"in the table in {times} of {len(best)} cases."
    )
    exceptions: dict[str, list[str]] = {}
    for setting, method in best:
        if method != winner:
            exceptions.setdefault(method, []).append(f"the {setting.student} student on {title(setting.data)}")
    for method, cases in exceptions.items():
        cases_word = "case" if len(cases) == 1 else "cases"
        text += f" {name(method)} has the highest mean in {len(cases)} {cases_word}: {listed(cases)}."
    return text


def main_table(study: Study) -> str:
    """Return the mean score of each core method for each student; the best of a row is bold."""
    methods = [method for method in CORE if any(method in one.runs for one in study.mains)]
    rows = []
    for one in study.mains:
        means = {method: one.score(method).mean for method in methods if method in one.runs}
        best = max(means, key=means.__getitem__)
        cells = {method: f"{mean:.3f}" for method, mean in means.items()}
        cells[best] = f"**{cells[best]}**"
        rows.append([title(one.data), one.size, *(cells.get(method, ABSENT) for method in methods)])
    return table(["data", "student (family, parameters)", *methods], rows, 2)


def all_differences(study: Study, others: Sequence[str]) -> str:
    """Return the differences of all pairs of interest in all main settings.

    Args:
        study: what was measured.
        others: methods that are compared with labels alone, besides the core.
    """
    pairs = [*COMPARISONS, *((method, "labels") for method in others)]
    rows = [
        [f"{method} - {other}", *(short_effect(one.difference(method, other)) for one in study.mains)]
        for method, other in pairs
        if any(one.difference(method, other) for one in study.mains)
    ]
    return table(["difference", *(one.name for one in study.mains)], rows)


def advice(study: Study) -> str:
    """Return how often each core method beats another over all settings, and what follows."""
    rows = []
    for method, other in COMPARISONS:
        found = [gain for one in study.settings if (gain := one.difference(method, other)) and gain.n > 1]
        if not found:
            continue
        signs = [gain.sign for gain in found]
        significant = sum(p < 0.05 for p in holm([gain.p for gain in found]))
        counts = [str(signs.count(sign)) for sign in (1, -1, 0)]
        rows.append([f"{method} against {other}", _rule(method, other, signs), *counts, str(significant)])
    return table(["methods", "rule", "better", "worse", "no clear difference", "corrected p < 0.05"], rows, 2)


def _rule(method: str, other: str, signs: Iterable[int]) -> str:
    if {1, -1} <= set(signs):
        return "It depends on the setting."
    if set(signs) == {0}:
        return "These seeds give no reason to prefer one of the two."
    better, worse = (method, other) if 1 in signs else (other, method)
    return f"Prefer {better} to {worse}."


def best_methods(study: Study) -> str:
    """Return the method with the best mean on validate in each setting, and what it gains on test."""
    rows = []
    for one in (setting for setting in study.settings if len(setting.methods) > 1):
        best = one.best(one.methods)
        gains: list[Mean | None] = [
            None if best == other else one.difference(best, other) for other in ("labels", "kd")
        ]
        rows.append([one.name, best, spread(one.score(best)), *map(effect, gains)])
    return table(["setting", "best method", "score on test", "gain over labels", "gain over kd"], rows, 2)
