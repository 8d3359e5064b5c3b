"""The runs of the study, and the record of those that are done."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pandas as pd

from iusp.config.base import Architecture
from iusp.config.methods import METHODS
from iusp.config.params import Config
from iusp.io.files import atomic

SIZES: dict[str, tuple[Architecture, int]] = {
    "tiny": ("cnn_lstm", 3500),
    "small": ("plain", 7000),
    "large": ("cnn_lstm", 95_000),
    "medium": ("plain", 24_000),
}
"""Architecture and largest number of parameters of each student."""
COMPARED = ("tiny", "small", "large")
"""Students that are trained with every method; `medium` costs most, so it is trained with the core methods only."""
SEARCHED = "small"
"""The student that the weights are searched with."""
EMBEDDED = "embedded"
CORE = ("labels", "kd", "sp", "iusp", "iusp+kd")
"""The methods that the main questions are about."""
STARTS: dict[str, tuple[float, float, float]] = {
    "labels": (0.005, 0.01, 0.02),
    "kd": (3, 10, 30),
    "sp": (30, 100, 300),
    "iusp": (10, 30, 100),
    "skill": (10, 30, 100),
    "attention": (100, 300, 1000),
    "fitnet": (0.3, 1, 3),
    "vic": (0.03, 0.1, 0.3),
    "inter": (0.1, 0.3, 1),
    "non_target": (3, 10, 30),
    "multilevel": (3, 10, 30),
    "iusp+kd": (10, 30, 100),
    "sp+kd": (30, 100, 300),
}
"""Values that the search begins with: learning rates for labels alone, λ for a method, λ of the first method for a
combination (its other methods keep their own best λ). While the best value is the smallest or the largest, the search
tries one beyond it, at most twice."""
SEARCH = STARTS | {
    name: (row.weight / 3, row.weight, 3 * row.weight)
    for name, row in METHODS.items()
    if name not in STARTS and not row.needs_fine_tags
}
"""The same for every method that the library has, also for new ones."""
BEYOND = 10**0.5
SEARCH_SEED = 1000
SEEDS, CORE_SEEDS = range(5), range(10)
"""Seeds of all methods, and of the core methods."""

Row = dict[str, str | int | float]
"""A finished run: what was trained, and what was measured."""


@dataclass(frozen=True)
class Run:
    """One training, described by the columns of the record that are known before it begins.

    Attributes:
        stage: part of the study: search, main, regime, variant or teacher.
        data: name of the data set.
        student: name of the student; see `SIZES`.
        method: distillation methods, joined by `+`, or labels.
        weights: λ by method, as JSON.
        learning_rate: largest learning rate.
        seed: seed of initialisation and order.
        variant: an idea beyond the paper; empty if there is none.
        augmentation: augmentation of the views that the student and the teacher hear.
        epochs: number of training epochs.
        batch_size: number of clips per optimiser step.
    """

    stage: str
    data: str
    student: str
    method: str
    weights: str
    learning_rate: float
    seed: int
    variant: str = ""
    augmentation: str = "light"
    epochs: int = 20
    batch_size: int = 32

    @property
    def knowledge(self) -> str:
        """Kind of knowledge that the run needs: that of its augmentation, or that of its variant."""
        variants = {"ensemble": "ensemble", "clean knowledge": "heavy-clean", "tags both": "both"}
        return variants.get(self.variant, self.augmentation)


MEASURED = ("architecture", "parameters", "kept_epoch", "validate_micro_auprc", "micro_auprc", "macro_auprc")
COLUMNS = (*(field.name for field in fields(Run)), *MEASURED, "cpu_seconds")


@dataclass(frozen=True)
class Choice:
    """Settings of a method.

    Attributes:
        weights: λ by method.
        learning_rate: largest learning rate.
    """

    weights: Mapping[str, float]
    learning_rate: float


Chosen = Callable[[str], Choice]
"""Returns the settings of a method."""


class Record:
    """The CSV of finished runs.

    Attributes:
        path: the file.
        rows: what it holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path.exists():
            table = pd.read_csv(path, keep_default_na=False)[list(COLUMNS)]
            self.rows = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]

    def add(self, row: Row) -> None:
        """Add a row and write the file atomically."""
        self.rows.append({column: row[column] for column in COLUMNS})
        with atomic(self.path) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False)

    def has(self, run: Run) -> bool:
        """Return whether a run is finished."""
        return any(all(row[name] == value for name, value in asdict(run).items()) for row in self.rows)

    def best(self, method: str) -> Choice:
        """Return the settings of the search that are best on validate."""
        table = pd.DataFrame(self.rows)
        table = table[(table["stage"] == "search") & (table["method"] == method) & (table["data"] == EMBEDDED)]
        groups = table.groupby(["weights", "learning_rate"], sort=False)
        _, runs = max(groups, key=lambda group: group[1]["validate_micro_auprc"].mean())
        return Choice(json.loads(runs["weights"].iloc[0]), float(runs["learning_rate"].iloc[0]))


def searches(record: Record, data: str, methods: Iterable[str]) -> Iterator[Run]:
    """Yield the next runs of the search, which uses the embedded data.

    A method is searched with the best learning rate of labels alone, and a combination with the best λ of its methods.
    Those searches must be on record.
    """
    for method in methods if data == EMBEDDED else ():
        first, *others = method.split("+")
        for value in _values(record, method):
            if method == "labels":
                choice = Choice({}, float(value))
            else:
                weights = {first: float(value)} | {other: record.best(other).weights[other] for other in others}
                choice = Choice(weights, record.best("labels").learning_rate)
            yield _run("search", data, SEARCHED, method, choice, SEARCH_SEED)


def _run(stage: str, data: str, student: str, method: str, choice: Choice, seed: int) -> Run:
    return Run(stage, data, student, method, json.dumps(choice.weights), choice.learning_rate, seed)


def _values(record: Record, method: str) -> list[float]:
    """Return the values to try next: the first ones, or one beyond the best if that is the smallest or the largest."""
    tried: dict[float, float] = {}
    for row in record.rows:
        if (row["stage"], row["data"], row["method"]) == ("search", EMBEDDED, method):
            weights = json.loads(str(row["weights"]))
            value = float(weights[method.split("+")[0]] if weights else row["learning_rate"])
            tried[value] = float(row["validate_micro_auprc"])
    if not set(SEARCH[method]) <= set(tried):
        return [float(value) for value in SEARCH[method]]
    best = max(tried, key=lambda value: tried[value])
    if best == min(tried):
        return [float(f"{best / BEYOND:.1g}")]
    return [float(f"{best * BEYOND:.1g}")] if best == max(tried) else []


def searched(record: Record) -> Chosen:
    """Return the settings that the search chose."""
    return lambda method: Choice(record.best(method).weights, record.best("labels").learning_rate)


def usual(config: Config) -> Chosen:
    """Return the settings of params.yaml."""
    weights, rate = config.distillation.weights, config.distillation.training.learning_rate
    return lambda method: Choice({name: getattr(weights, name) for name in method.split("+") if name != "labels"}, rate)


def mains(
    chosen: Chosen, data: str, methods: Iterable[str], seeds: Iterable[int], sizes: Iterable[str] = tuple(SIZES)
) -> Iterator[Run]:
    """Yield the runs of the main experiment."""
    for seed in seeds:
        for size in sizes:
            for method in methods:
                yield _run("main", data, size, method, chosen(method), seed)


def regimes(chosen: Chosen, data: str, seeds: Iterable[int]) -> Iterator[Run]:
    """Yield the runs of the core methods in other training regimes."""
    for seed in seeds:
        for method in CORE:
            run = _run("regime", data, SEARCHED, method, chosen(method), seed)
            yield replace(run, augmentation="clean")
            yield replace(run, augmentation="heavy")
            yield replace(run, batch_size=64)
            yield replace(run, epochs=40)


def variants(chosen: Chosen, data: str, seeds: Iterable[int]) -> Iterator[Run]:
    """Yield the runs of the ideas beyond the paper that are not methods of their own."""
    for seed in seeds:
        for method in ("iusp", "kd"):
            run = _run("variant", data, SEARCHED, method, chosen(method), seed)
            yield replace(run, variant="online")
            yield replace(run, variant="ensemble")
            yield replace(run, variant="clean knowledge", augmentation="heavy")
            if method == "iusp":
                yield replace(run, variant="layers")
            yield replace(run, variant="decay")
        rate = chosen("labels").learning_rate
        for method, weights in (("labels", {}), ("consistency", {"consistency": 1.0})):
            run = _run("variant", data, SEARCHED, method, Choice(weights, rate), seed)
            yield replace(run, variant="tags both")


Wave = Callable[[str], Iterable[Run]]
"""A part of the study: returns its runs on a data set."""


def whole_grid(record: Record) -> list[Wave]:
    """Return the parts of the study, in order: later ones use the results of earlier ones."""
    singles = [method for method in SEARCH if "+" not in method]
    combinations = [method for method in SEARCH if "+" in method]
    others = [method for method in SEARCH if method not in CORE]
    chosen = searched(record)
    return [
        *[lambda data: searches(record, data, ["labels"])] * 3,
        *[lambda data: searches(record, data, singles[1:])] * 3,
        *[lambda data: searches(record, data, combinations)] * 3,
        lambda data: mains(chosen, data, CORE, SEEDS),
        lambda data: mains(chosen, data, CORE, CORE_SEEDS, COMPARED),
        lambda data: mains(chosen, data, others, SEEDS, COMPARED),
        lambda data: variants(chosen, data, SEEDS) if data == EMBEDDED else (),
        lambda data: regimes(chosen, data, SEEDS),
    ]


def quick_grid(config: Config) -> list[Wave]:
    """Return a small part of the study, with the settings of params.yaml."""
    return [lambda data: mains(usual(config), data, CORE, range(2), ("tiny", "small"))]
