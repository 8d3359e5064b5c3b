"""What `make bench-science` measured: its CSV, put together into settings in which methods can be compared."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from benchmarks.science.statistics import Mean, mean_of
from iusp.errors import InputError

METHODS: Mapping[str, Mapping[str, str]] = yaml.safe_load(Path(__file__).with_name("methods.yaml").read_text())
COLUMNS = (
    *("stage", "data", "student", "architecture", "parameters", "method", "variant", "weights", "augmentation"),
    *("epochs", "batch_size", "learning_rate", "seed", "kept_epoch", "validate_micro_auprc", "micro_auprc"),
    *("macro_auprc", "cpu_seconds"),
)
SETTING = ["data", "student", "augmentation", "epochs", "batch_size"]


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
        name: data, student and what differs from the student's main setting.
        runs: by method (a variant is `method, variant`), what was measured; indexed by seed.
    """

    data: str
    student: str
    parameters: int
    augmentation: str
    epochs: int
    batch_size: int
    main: bool
    name: str
    runs: Mapping[str, pd.DataFrame]

    @property
    def size(self) -> str:
        """Student and parameters."""
        return f"{self.student} ({self.parameters:,})"

    @property
    def regime(self) -> str:
        """How it was trained."""
        return f"{self.augmentation}, {self.epochs} epochs, batch {self.batch_size}"

    @property
    def methods(self) -> list[str]:
        """What was run, without variants."""
        return [name for name in self.runs if ", " not in name]

    def score(self, method: str, column: str = "micro_auprc") -> Mean:
        """Return what a method reached over its seeds."""
        return mean_of(self.runs[method][column])

    def values(self, *methods: str) -> list[NDArray[np.float64]]:
        """Return the micro AUPRC of methods with the seeds that they share, in the seeds' order."""
        table = pd.concat([self.runs[method]["micro_auprc"] for method in methods], axis=1, join="inner").sort_index()
        return list(table.to_numpy(np.float64).T)

    def difference(self, method: str, other: str) -> Mean | None:
        """Return the paired difference of micro AUPRC, or None where the two share no seed."""
        if not {method, other} <= set(self.runs):
            return None
        a, b = self.values(method, other)
        return mean_of(a - b) if len(a) else None

    def best(self, methods: Iterable[str]) -> str:
        """Return the method with the highest mean on validate."""
        return max(methods, key=lambda method: self.score(method, "validate_micro_auprc").mean)

    def cost(self, method: str, other: str = "labels") -> float:
        """Return the ratio of the medians of CPU time."""
        return float(self.runs[method]["cpu_seconds"].median() / self.runs[other]["cpu_seconds"].median())


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

    def regimes(self, data: str) -> list[Setting]:
        """The settings of students that were trained in several, each after its main one."""
        students = {one.student for one in self.settings if one.data == data and not one.main and len(one.methods) > 1}
        return [one for one in self.settings if one.data == data and one.student in students]


def rank(name: str) -> tuple[bool, int, str]:
    """Sort single methods as methods.yaml does, then combinations, then variants."""
    method, _, variant = name.partition(", ")
    return (bool(variant), list(METHODS).index(method) if method in METHODS else len(METHODS), name)


def read_study(path: Path) -> Study:
    """Read the CSV of finished runs.

    Raises:
        InputError: it cannot be read, a column is missing, a run is there twice, or the main part has no run yet.
    """
    try:
        table = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); write it with `make bench-science`") from None
    if missing := [column for column in COLUMNS if column not in table]:
        raise InputError(f"{path}: has no column {', '.join(missing)}; write it with `make bench-science`")
    if not (table["stage"] == "main").any():
        raise InputError(f"{path}: has no run of stage main yet; run `make bench-science`")
    compared = table[table["stage"].isin(["main", "regime", "variant"])]
    key = [*SETTING, "method", "variant", "seed"]
    twice = compared[compared.duplicated(key)]
    if len(twice):
        raise InputError(f"{path}: line {twice.index[0] + 2} repeats a run that is there already; remove it")
    mains = compared[compared["stage"] == "main"].drop_duplicates(["data", "student"]).set_index(["data", "student"])
    settings = []
    for (data, student, augmentation, epochs, batch_size), rows in compared.groupby(SETTING):
        names = rows["method"] + rows["variant"].map(lambda variant: f", {variant}" if variant else "")
        by_name = dict(iter(rows.groupby(names)))
        runs = {name: by_name[name].set_index("seed").sort_index() for name in sorted(by_name, key=rank)}
        words = {
            "augmentation": augmentation,
            "epochs": f"{epochs} epochs",
            "batch_size": f"batch {batch_size}",
        }
        if (data, student) in mains.index:
            usual, own = mains.loc[(data, student)], rows.iloc[0]
            words = {column: word for column, word in words.items() if own[column] != usual[column]}
        settings.append(
            Setting(
                data=data,
                student=student,
                parameters=int(rows["parameters"].min()),
                augmentation=augmentation,
                epochs=epochs,
                batch_size=batch_size,
                main=bool((rows["stage"] == "main").any()),
                name=", ".join([f"{data} {student}", *words.values()]),
                runs=runs,
            )
        )
    settings.sort(key=lambda one: (one.data, one.parameters, one.student, not one.main, one.epochs, one.regime))
    # Other teachers (of an ensemble, of other tags) have a variant or a higher seed.
    teachers = table[(table["stage"] == "teacher") & (table["variant"] == "")].sort_values("seed", kind="stable")
    return Study(
        table, settings, {str(data): float(rows["micro_auprc"].iloc[0]) for data, rows in teachers.groupby("data")}
    )
