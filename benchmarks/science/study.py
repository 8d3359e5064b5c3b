"""The recorded runs, grouped into settings in which methods can be compared."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from benchmarks.science.grid import COLUMNS, EMBEDDED
from benchmarks.science.statistics import Mean, mean_of
from iusp.config.methods import METHODS
from iusp.errors import InputError

REFERENCES: Mapping[str, Mapping[str, str]] = yaml.safe_load(Path(__file__).with_name("methods.yaml").read_text())
"""Source and equation of each method, and of those that were tried and not kept."""
METHOD_NAMES = tuple(dict.fromkeys(["labels", *METHODS, *REFERENCES]))
"""All methods without combinations, in the order of the tables."""
FAMILIES = {"cnn_lstm": "CNN-LSTM"}
SETTING = ["data", "student", "augmentation", "epochs", "batch_size"]


@dataclass(frozen=True)
class Setting:
    """What runs must share to be compared.

    Attributes:
        data: name of the data set.
        student: name of the student.
        family: architecture of the student, for people.
        parameters: number of parameters of the student.
        augmentation: name of the augmentation.
        epochs: number of training epochs.
        batch_size: number of clips per optimiser step.
        main: whether this is a setting of the main experiment.
        name: data set and student, and what differs from the main setting of that student.
        runs: table of runs by method, indexed by seed; a variant has the key `method, variant`.
    """

    data: str
    student: str
    family: str
    parameters: int
    augmentation: str
    epochs: int
    batch_size: int
    main: bool
    name: str
    runs: Mapping[str, pd.DataFrame]

    @property
    def size(self) -> str:
        """Name, family and number of parameters of the student."""
        return f"{self.student} ({self.family}, {self.parameters:,})"

    @property
    def regime(self) -> str:
        """Augmentation, number of epochs and batch size."""
        return f"{self.augmentation}, {self.epochs} epochs, batch {self.batch_size}"

    @property
    def methods(self) -> list[str]:
        """Names of the methods that were run, without variants."""
        return [name for name in self.runs if ", " not in name]

    def score(self, method: str, column: str = "micro_auprc") -> Mean:
        """Return the mean score of a method over its seeds."""
        return mean_of(self.runs[method][column])

    def values(self, *methods: str) -> list[NDArray[np.float64]]:
        """Return the micro AUPRC of each method for the seeds that all of them have, in the order of the seeds."""
        table = pd.concat([self.runs[method]["micro_auprc"] for method in methods], axis=1, join="inner").sort_index()
        return list(table.to_numpy(np.float64).T)

    def difference(self, method: str, other: str) -> Mean | None:
        """Return the paired difference of micro AUPRC, or None if the two methods have no seed in common."""
        if not {method, other} <= set(self.runs):
            return None
        a, b = self.values(method, other)
        return mean_of(a - b) if len(a) else None

    def best(self, methods: Iterable[str]) -> str:
        """Return the method with the highest mean on validate."""
        return max(methods, key=lambda method: self.score(method, "validate_micro_auprc").mean)

    def cost(self, method: str, other: str = "labels") -> float:
        """Return the median CPU time of a method, divided by that of another."""
        return float(self.runs[method]["cpu_seconds"].median() / self.runs[other]["cpu_seconds"].median())


@dataclass(frozen=True)
class Study:
    """Everything that was measured.

    Attributes:
        table: all runs, as recorded.
        settings: settings of students, sorted by data set and number of parameters.
        teachers: micro AUPRC on test of the teacher of each data set.
    """

    table: pd.DataFrame
    settings: Sequence[Setting]
    teachers: Mapping[str, float]

    @property
    def data(self) -> list[str]:
        """Names of the data sets."""
        return sorted({setting.data for setting in self.settings})

    @property
    def mains(self) -> list[Setting]:
        """Main settings of all data sets."""
        return [setting for setting in self.settings if setting.main]

    def main(self, data: str) -> list[Setting]:
        """Return the main settings of a data set, sorted by number of parameters."""
        return [setting for setting in self.mains if setting.data == data]

    def regimes(self, data: str) -> list[Setting]:
        """Return the settings of students that were trained in several regimes, each student's main one first."""
        students = {one.student for one in self.settings if one.data == data and not one.main and len(one.methods) > 1}
        return [one for one in self.settings if one.data == data and one.student in students]


def title(data: str) -> str:
    """Return what a data set is, for people."""
    return "generated scenes" if data == EMBEDDED else f"real recordings ({data})"


def rank(name: str) -> tuple[bool, int, str]:
    """Return a sort key: single methods in the order of METHOD_NAMES, then combinations, then variants."""
    method, _, variant = name.partition(", ")
    return (bool(variant), METHOD_NAMES.index(method) if method in METHOD_NAMES else len(METHOD_NAMES), name)


def read_study(path: Path) -> Study:
    """Read the record of runs.

    Args:
        path: CSV that `make bench-science` writes.

    Raises:
        InputError: the file cannot be read, lacks a column, repeats a run, or has no run of the main experiment yet.
    """
    table = _read(path)
    compared = table[table["stage"].isin(["main", "regime", "variant"])]
    repeated = compared[compared.duplicated([*SETTING, "method", "variant", "seed"])]
    if len(repeated):
        raise InputError(f"{path}: line {repeated.index[0] + 2} repeats an earlier run; remove that line")
    settings = sorted(
        _settings(compared),
        key=lambda one: (one.data, one.parameters, one.student, not one.main, one.epochs, one.regime),
    )
    # The other teachers (other tags, members of an ensemble) have a variant or a higher seed.
    teachers = table[(table["stage"] == "teacher") & (table["variant"] == "")].sort_values("seed", kind="stable")
    scores = {str(data): float(rows["micro_auprc"].iloc[0]) for data, rows in teachers.groupby("data")}
    return Study(table, settings, scores)


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); write it with `make bench-science`") from None
    if missing := [column for column in COLUMNS if column not in table]:
        raise InputError(f"{path}: has no column {', '.join(missing)}; write it with `make bench-science`")
    if not (table["stage"] == "main").any():
        raise InputError(f"{path}: has no run of stage main yet; run `make bench-science`")
    return table


def _settings(compared: pd.DataFrame) -> Iterator[Setting]:
    """Group runs into settings."""
    mains = compared[compared["stage"] == "main"].drop_duplicates(["data", "student"])
    usual = {(row["data"], row["student"]): row for row in mains.to_dict("records")}
    for _, rows in compared.groupby(SETTING):
        first = rows.iloc[0]
        words = {
            "augmentation": first["augmentation"],
            "epochs": f"{first['epochs']} epochs",
            "batch_size": f"batch {first['batch_size']}",
        }
        if main := usual.get((first["data"], first["student"])):
            words = {column: word for column, word in words.items() if first[column] != main[column]}
        names = rows["method"] + rows["variant"].map(lambda variant: f", {variant}" if variant else "")
        by_name = {str(name): group.set_index("seed").sort_index() for name, group in rows.groupby(names)}
        yield Setting(
            data=first["data"],
            student=first["student"],
            family=FAMILIES.get(first["architecture"], first["architecture"]),
            parameters=int(rows["parameters"].min()),
            augmentation=first["augmentation"],
            epochs=int(first["epochs"]),
            batch_size=int(first["batch_size"]),
            main=bool((rows["stage"] == "main").any()),
            name=", ".join([f"{first['data']} {first['student']}", *words.values()]),
            runs={name: by_name[name] for name in sorted(by_name, key=rank)},
        )
