"""The targets that were set before the study, and whether they are met."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.pages import table
from benchmarks.science.grid import EMBEDDED
from benchmarks.science.statistics import Ratio, gap_closed
from benchmarks.science.study import Setting, Study
from benchmarks.science.tables import effect, share

LARGEST, SHARE = 100_000, 0.8
"""Largest student of the third target, and the share of the gap that it must close."""
VERDICTS = {1: "met", 0: "unclear", -1: "not met"}


@dataclass
class Target:
    """A target with the comparisons that decide it.

    Attributes:
        text: what is expected.
        wanted: number of comparisons that it needs.
        signs: result of each comparison: 1 as expected, -1 the opposite, 0 unclear.
        rows: table rows of the comparisons.
    """

    text: str
    wanted: int
    signs: list[int] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    def add(self, sign: int, *cells: str) -> None:
        """Record a comparison; the verdict goes in front of the last cell."""
        self.signs.append(sign)
        self.rows.append([*cells[:-1], VERDICTS[sign], cells[-1]])

    @property
    def verdict(self) -> str:
        """Met if all comparisons are as expected, not met if one is the opposite, else unclear."""
        if len(self.signs) != self.wanted or not self.signs:
            return f"{len(self.signs)} of {self.wanted} comparisons were run"
        counts = ", ".join(f"{self.signs.count(sign)} {word}" for sign, word in VERDICTS.items())
        return f"{VERDICTS[min(self.signs)]} ({counts})"


def targets(study: Study) -> str:
    """Return each target with its verdict, and the comparisons that it rests on."""

    def best_against_kd(setting: Setting) -> list[tuple[str, str]]:
        combinations = [method for method in setting.runs if "+" in method]
        return [(setting.best(combinations), "kd")] if combinations else []

    mains = study.main(EMBEDDED)
    order = Target(f"SP beats labels alone, and IUSP beats SP, for every student on {EMBEDDED}", 2 * len(mains))
    _compare(order, mains, lambda _: [("sp", "labels"), ("iusp", "sp")])
    data = " and ".join(study.data)
    combined = Target(f"The best combination beats KD alone for every student on {data}", len(study.mains))
    _compare(combined, study.mains, best_against_kd)
    found = [order, combined, _gap_target(study)]
    return (
        "".join(f"- {target.text}: **{target.verdict}**.\n" for target in found)
        + "\nEach target consists of several comparisons; the brackets count them by verdict. A target is met if all "
        "its comparisons are met, and not met if one of them is not met.\n\n"
        "The next table shows the comparisons. The limit of a difference is 0, and the limit of the closed share of "
        f"the gap is {SHARE:.0%}. A comparison is *met* if the whole interval lies on the expected side of the limit. "
        "It is *not met* if the whole interval lies on the other side. It is *unclear* if the interval includes the "
        "limit; more seeds are then needed to decide.\n\n"
        + table(
            ["expected", "data", "student", "verdict", "measured [95 %]"],
            [row for target in found for row in target.rows],
            4,
        )
    )


def _compare(
    target: Target, settings: Iterable[Setting], pairs: Callable[[Setting], Sequence[tuple[str, str]]]
) -> None:
    for setting in settings:
        for method, other in pairs(setting):
            if one := setting.difference(method, other):
                target.add(one.sign, f"{method} > {other}", setting.data, setting.size, effect(one))


def _gap_target(study: Study) -> Target:
    target = Target(
        f"The best student of at most {LARGEST:,} parameters closes {SHARE:.0%} of the gap between training on labels "
        "alone and the teacher, on each data set",
        len(study.data),
    )
    for data in study.data:
        if found := best_student(study, data):
            setting, method, ratio = found
            sign = int(ratio.low >= SHARE) - int(ratio.high < SHARE) if ratio.bounded else 0
            student = setting.size if setting.main else f"{setting.size}, {setting.regime}"
            target.add(sign, f"{method} closes {SHARE:.0%}", data, student, share(ratio))
    return target


def best_student(study: Study, data: str) -> tuple[Setting, str, Ratio] | None:
    """Return the student that is best on validate, its method, and the share of the gap that it closes on test."""
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
    student, labels = setting.values(method, "labels")
    return setting, method, gap_closed(student, labels, study.teachers[data])
