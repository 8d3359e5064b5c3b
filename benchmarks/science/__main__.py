"""Compare all methods of distillation on one teacher's knowledge, with enough seeds to tell.

python -m benchmarks.science              every run that runs.csv does not hold yet, some hours on two
                                          cores; then docs/results.md and docs/methods.md
python -m benchmarks.science --quick      a small part of the grid into data/science/quick/

The embedded data, and recordings in SONYC-UST's format where --recordings names a folder, go through the steps dataset,
features and teacher, as `dvc repro` would do. Then students are trained: first each method's weight is searched, all
with the same budget, on validate, with seeds of their own; then the methods are compared. Runs of a setting that share
a seed share initialisation and batches. A row is appended to the CSV as each run ends; a killed study goes on.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from shutil import ignore_patterns
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pandas as pd
from joblib import cpu_count
from numpy.typing import NDArray
from scipy.special import expit, logit
from torch import Tensor

from benchmarks.machine import machine
from benchmarks.science.report import write_report
from iusp import models
from iusp.cli.console import readable_failures, shown_progress
from iusp.config.augmentation import Augmentation
from iusp.config.params import Config, load
from iusp.config.students import Student, recipe
from iusp.data.taxonomy import read_taxonomy
from iusp.distillation.losses import DistillationLosses
from iusp.distillation.method import Outputs
from iusp.errors import InputError
from iusp.evaluation.metrics import score, score_table
from iusp.evaluation.scoring import truth_table
from iusp.features.augmentation import View, augment
from iusp.features.packed import read_features
from iusp.io.files import atomic, digest, read_json, sha256, write_json
from iusp.io.processes import worker_pool
from iusp.models.inference import predict
from iusp.models.layers import Tagger
from iusp.reporter import Reporter
from iusp.steps import dataset, features, student, teacher
from iusp.training.data import TrainingData, TrainingFolders, read_training_data
from iusp.training.knowledge import Knowledge, KnowledgeRequest, ask, read_knowledge, write_knowledge

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "benchmarks" / "science" / "runs.csv"
MACHINE = RECORD.with_name("machine.txt")
"""What the recorded runs were made on."""
WORK = ROOT / "data" / "science"

SIZES = {
    "tiny": ("cnn_lstm", 3500),
    "small": ("plain", 7000),
    "large": ("cnn_lstm", 95_000),
    "medium": ("plain", 24_000),  # costs most: the core alone
}
COMPARED = ("tiny", "small", "large")
KINDS = ["logits", "pooled", "similarity", "embedding", "attention", "hints"]
SEARCHED = "small"
CORE = ("labels", "kd", "sp", "iusp", "iusp+kd")
# Values of λ that are tried first, of the learning rate for labels alone, and for a combination of the weight of its
# first term beside the others' own best. Where the best is at an edge, one beyond it is tried, and once more.
SEARCH: dict[str, tuple[float, float, float]] = {
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
BEYOND = 10**0.5
SEARCH_SEED = 1000
SEEDS, CORE_SEEDS = range(5), range(10)
"""Of all methods, and of the core where the effect is near its spread."""


@dataclass(frozen=True)
class Run:
    """One training; what the CSV has of it before it begins, so that it is made only once."""

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
        """What the teacher was asked: about views of this augmentation, or what the variant says."""
        variants = {"ensemble": "ensemble", "clean knowledge": "heavy-clean", "tags both": "both"}
        return variants.get(self.variant, self.augmentation)


RESULTS = ["architecture", "parameters", "kept_epoch", "validate_micro_auprc", "micro_auprc", "macro_auprc"]
COLUMNS = [*(field.name for field in fields(Run)), *RESULTS, "cpu_seconds"]

# One teacher a data set, and what it knows


@dataclass(frozen=True)
class World:
    """A data set and its teacher.

    Attributes:
        name: of the data set.
        folder: holds dataset, recordings, features, and a folder for each kind of knowledge.
    """

    name: str
    folder: Path

    @property
    def dataset(self) -> Path:
        """What the dataset step wrote."""
        return self.folder / "dataset"

    @property
    def features(self) -> Path:
        """What the features step wrote."""
        return self.folder / "features"

    def teacher(self, knowledge: str) -> Path:
        """The teacher with this kind of knowledge."""
        return self.folder / "teachers" / knowledge


def prepare(config: Config, name: str, reporter: Reporter) -> World:
    """Run the steps that come before students, but for what is there already."""
    settings = [config.dataset, config.features, config.augmentation, config.teacher]
    key = digest([section.model_dump(mode="json", by_alias=True) for section in settings])
    world = World(name, WORK / f"{name}-{key[:12]}")
    if not world.dataset.exists():
        dataset.run(config.dataset, world.dataset, world.folder / "recordings", reporter)
    if not world.features.exists():
        features.run(config.features, world.dataset, world.folder / "recordings", world.features, reporter)
    _teach(config, world, "light", reporter, knowledge=KINDS, layers=[1, 2, 3, 4])
    return world


def know(config: Config, world: World, kind: str, reporter: Reporter) -> None:
    """Make a kind of knowledge, if it is not there: about other views, of other teachers, of other tags."""
    if world.teacher(kind).exists():
        return
    views = config.augmentation.views
    if kind == "clean":
        _ask_about(config, world, kind, views.model_copy(update={"roll": False, "gain_db": 0.0}), 1, reporter)
    elif kind == "heavy":
        _ask_about(config, world, kind, config.augmentation.teacher, config.teacher.views, reporter)
    elif kind == "heavy-clean":
        know(config, world, "heavy", reporter)
        _ask_without_masks(world, kind, reporter)
    elif kind == "ensemble":
        _average_teachers(config, world, kind, reporter)
    else:
        _teach(config, world, kind, reporter, tags=kind, knowledge=["logits"], layers=[1])


def _teach(config: Config, world: World, kind: str, reporter: Reporter, **changes: Any) -> None:
    output, settings = world.teacher(kind), config.teacher.model_copy(update=changes)
    if not output.exists():
        teacher.run(settings, config.augmentation, TrainingFolders(world.dataset, world.features), output, reporter)


def _data(world: World) -> TrainingData:
    predicts = json.loads((world.teacher("light") / "config.json").read_text())["predicts"]
    return read_training_data(TrainingFolders(world.dataset, world.features), predicts)


@contextmanager
def _same_teacher(world: World, kind: str, *ignored: str) -> Iterator[Path]:
    """Yield a folder with the teacher, but for files of a name, that becomes its folder of this kind of knowledge."""
    work = world.folder / f"{kind}.part"
    shutil.rmtree(work, ignore_errors=True)
    source = world.teacher("heavy" if kind == "heavy-clean" else "light")
    shutil.copytree(source, work, ignore=ignore_patterns(*ignored))
    yield work
    work.rename(world.teacher(kind))


def _ask_about(config: Config, world: World, kind: str, views: Augmentation, count: int, reporter: Reporter) -> None:
    """Ask the teacher about other views."""
    with _same_teacher(world, kind, "knowledge") as folder:
        network = models.load(folder)[0]
        names = ("logits", "similarity-1", "embedding-1")
        request = KnowledgeRequest(views, config.teacher.seed, count, names)
        write_knowledge(folder, network, _data(world), request, reporter)


def _ask_without_masks(world: World, kind: str, reporter: Reporter) -> None:
    """Replace what the teacher knows of heavy views by what it knows of them without masks and mixup."""
    with _same_teacher(world, kind) as folder:
        data, network = _data(world), models.load(folder)[0]
        knowledge = read_knowledge(folder, data)
        for number in range(knowledge.views):
            view = knowledge.view(number)
            share, no_masks = np.ones_like(view.share), view.time_masks[:, :0]
            whole = replace(view, share=share, time_masks=no_masks, band_masks=no_masks)
            for name, array in _answers(network, data, whole, "logits", "similarity-1", "embedding-1").items():
                _put(knowledge, name, number, array)
            reporter.progress(f"{world.name}: clean knowledge", number + 1, knowledge.views)


def _average_teachers(config: Config, world: World, kind: str, reporter: Reporter) -> None:
    """Replace probabilities and similarities by their averages over three teachers."""
    for seed in (1, 2):
        _teach(config, world, f"seed-{seed}", reporter, seed=seed, views=1)
    with _same_teacher(world, kind) as folder:
        data = _data(world)
        knowledge = read_knowledge(folder, data)
        teachers = [models.load(world.teacher(name))[0] for name in ("light", "seed-1", "seed-2")]
        for number in range(knowledge.views):
            view = knowledge.view(number)
            answers = [_answers(network, data, view, "logits", "similarity-1") for network in teachers]
            probability = np.mean([expit(one["logits"]) for one in answers], axis=0)
            _put(knowledge, "logits", number, logit(probability.clip(1e-6, 1 - 1e-6)))
            _put(knowledge, "similarity-1", number, np.mean([one["similarity-1"] for one in answers], axis=0))
            reporter.progress(f"{world.name}: ensemble", number + 1, knowledge.views)


def _answers(network: Tagger, data: TrainingData, view: View, *names: str) -> dict[str, NDArray[np.float32]]:
    """Ask a teacher about a whole view."""
    answers: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for rows in np.array_split(np.arange(len(data.clips)), -(-len(data.clips) // 64)):
        log_mel, _, _ = augment(view, data.clips, rows, data.features.mean)
        for name, tensor in ask(network, log_mel, names).items():
            answers[name].append(tensor.numpy())
    return {name: np.concatenate(parts) for name, parts in answers.items()}


def _put(knowledge: Knowledge, name: str, view: int, array: NDArray[np.floating[Any]]) -> None:
    path = knowledge.folder / f"view-{view:03d}" / f"{name}.npy"
    path.unlink()
    np.save(path, array.astype(np.float16))
    described = knowledge.folder / "knowledge.json"
    description = read_json(described)
    description["sha256"][f"{path.parent.name}/{name}"] = sha256(path)
    write_json(described, description)


# One training


@cache
def _truth(dataset: Path, features: Path) -> tuple[Any, Any, Any]:
    taxonomy, feature_set = read_taxonomy(dataset / "taxonomy.yaml"), read_features(features)
    return taxonomy, feature_set, truth_table(dataset, feature_set, "test", taxonomy, "coarse")


def measured(network_folder: Path, world: World) -> dict[str, Any]:
    """Return a trained network's columns of the CSV: what it is, and its coarse AUPRCs on test."""
    network, description = models.load(network_folder)
    taxonomy, feature_set, truth = _truth(world.dataset, world.features)
    scores = score_table(predict(network, feature_set.log_mel("test")), description["tags"], taxonomy, "coarse")
    found = score(truth, scores, taxonomy, "coarse")
    return {
        "architecture": description["architecture"],
        "parameters": description["parameters"],
        "kept_epoch": description["epoch"],
        "validate_micro_auprc": description["validate_micro_auprc"],
        "micro_auprc": found.micro_auprc,
        "macro_auprc": found.macro_auprc,
    }


class _Decaying(DistillationLosses):
    """Weights that fall to zero in a straight line."""

    steps = 1

    def forward(self, outputs: Outputs) -> dict[str, Tensor]:
        self.done = getattr(self, "done", 0) + 1
        return {name: (1 - self.done / self.steps) * loss for name, loss in super().forward(outputs).items()}


def train(run: Run, world: World, config: Config) -> dict[str, Any]:
    """Train one student in a process of its own and return its row of the CSV."""
    architecture, parameters = SIZES[run.student]
    weights = json.loads(run.weights)
    layers = {term: [1, 2, 3] for term in weights} if run.variant == "layers" else None
    settings = Student(
        architecture=architecture,
        parameters=parameters,
        method=run.method,
        weights=weights or None,
        layers=layers,
        seeds=[run.seed],
    )
    optimisation = config.distillation.training.model_copy(
        update={
            "epochs": run.epochs,
            "patience": run.epochs,
            "batch_size": run.batch_size,
            "learning_rate": run.learning_rate,
            "threads": 1,
        }
    )
    common = config.distillation.model_copy(
        update={"training": optimisation, "knowledge": "online" if run.variant == "online" else "cached"}
    )
    folder = Path(mkdtemp(dir=world.folder))
    taught = world.teacher(run.knowledge)
    inputs = student.StudentInputs(TrainingFolders(world.dataset, world.features), taught)
    job = student.SeedJob(recipe(run.student, settings, common), run.seed, inputs, folder / "network")
    # Not an option of the student step: a decaying weight has not been seen to help.
    _Decaying.steps = run.epochs * (read_features(world.features).clips["train"] // run.batch_size)
    student.DistillationLosses = _Decaying if run.variant == "decay" else DistillationLosses  # type: ignore[misc]
    start = time.process_time()
    student.learn(job, lambda row: None)
    row = asdict(run) | {"cpu_seconds": round(time.process_time() - start, 2)} | measured(job.folder, world)
    shutil.rmtree(folder)
    return row


# The grid


class Record:
    """The CSV of finished runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            self.rows = pd.read_csv(path, keep_default_na=False)[COLUMNS].to_dict("records")

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        self.rows.append({column: row[column] for column in COLUMNS})
        with atomic(self.path) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False)

    def has(self, run: Run) -> bool:
        """Tell whether a run has been made."""
        return any(all(row[name] == value for name, value in asdict(run).items()) for row in self.rows)

    def best(self, method: str) -> dict[str, Any]:
        """Return the weights and the learning rate that are best on validate."""
        table = pd.DataFrame(self.rows)
        table = table[(table["stage"] == "search") & (table["method"] == method) & (table["data"] == "embedded")]
        means = table.groupby(["weights", "learning_rate"], sort=False)["validate_micro_auprc"].mean()
        weights, rate = means.idxmax()
        return {"weights": json.loads(weights), "learning_rate": float(rate)}


def searches(record: Record, data: str, methods: Iterable[str]) -> Iterator[Run]:
    """Return the runs of the search, on the embedded data; those of combinations and of λ stand on earlier ones."""
    for method in methods if data == "embedded" else ():
        first, *others = method.split("+")
        for value in _values(record, method):
            if method == "labels":
                weights, rate = {}, float(value)
            else:
                rate = record.best("labels")["learning_rate"]
                weights = {other: record.best(other)["weights"][other] for other in others}
                weights = {first: float(value)} | weights
            yield Run("search", data, SEARCHED, method, json.dumps(weights), rate, SEARCH_SEED)


def _values(record: Record, method: str) -> list[float]:
    """Return the values to try of what is searched: the first ones, or one beyond the edge where the best is."""
    tried: dict[float, float] = {}
    for row in record.rows:
        if (row["stage"], row["data"], row["method"]) == ("search", "embedded", method):
            weights = json.loads(row["weights"])
            value = weights[method.split("+")[0]] if weights else row["learning_rate"]
            tried[value] = row["validate_micro_auprc"]
    if not set(SEARCH[method]) <= set(tried):
        return [float(value) for value in SEARCH[method]]
    best = max(tried, key=lambda value: tried[value])
    if best == min(tried):
        return [float(f"{best / BEYOND:.1g}")]
    return [float(f"{best * BEYOND:.1g}")] if best == max(tried) else []


# Settings of a method, as columns.
Chosen = Callable[[str], dict[str, Any]]


def searched(record: Record) -> Chosen:
    """Return the settings that the search chose."""

    def chosen(method: str) -> dict[str, Any]:
        rate = record.best("labels")["learning_rate"]
        return {"weights": json.dumps(record.best(method)["weights"]), "learning_rate": rate}

    return chosen


def usual(config: Config) -> Chosen:
    """Return the settings of params.yaml."""

    def chosen(method: str) -> dict[str, Any]:
        weights = {term: getattr(config.distillation.weights, term) for term in method.split("+") if term != "labels"}
        return {"weights": json.dumps(weights), "learning_rate": config.distillation.training.learning_rate}

    return chosen


def mains(
    chosen: Chosen, data: str, methods: Iterable[str], seeds: Iterable[int], sizes: Iterable[str] = tuple(SIZES)
) -> Iterator[Run]:
    """Return the runs of the main comparison."""
    for seed in seeds:
        for size in sizes:
            for method in methods:
                yield Run("main", data, size, method, seed=seed, **chosen(method))


def regimes(chosen: Chosen, data: str, seeds: Iterable[int]) -> Iterator[Run]:
    """Return the runs of the core methods in other regimes."""
    changes = [{"augmentation": "clean"}, {"augmentation": "heavy"}, {"batch_size": 64}, {"epochs": 40}]
    for seed in seeds:
        for change in changes:
            for method in CORE:
                run = Run("regime", data, SEARCHED, method, seed=seed, **chosen(method))
                yield replace(run, **change)


def variants(chosen: Chosen, data: str, seeds: Iterable[int]) -> Iterator[Run]:
    """Return the runs of what goes beyond the paper and is no method of its own."""
    for seed in seeds:
        for method in ("iusp", "kd"):
            run = Run("variant", data, SEARCHED, method, seed=seed, **chosen(method))
            yield replace(run, variant="online")
            yield replace(run, variant="ensemble")
            yield replace(run, variant="clean knowledge", augmentation="heavy")
            if method == "iusp":
                yield replace(run, variant="layers")
            yield replace(run, variant="decay")
        rate = chosen("labels")["learning_rate"]
        for method, weights in (("labels", {}), ("consistency", {"consistency": 1.0})):
            yield Run("variant", data, SEARCHED, method, json.dumps(weights), rate, seed, variant="tags both")


def add_teacher(record: Record, world: World) -> None:
    """Put the teacher on record."""
    run = Run("teacher", world.name, "teacher", "labels", "{}", 0.0, 0, augmentation="heavy")
    if not record.has(run):
        record.add(asdict(run) | {"cpu_seconds": 0.0} | measured(world.teacher("light"), world))


Wave = Callable[[str], Iterable[Run]]


def whole_grid(record: Record) -> list[Wave]:
    """Return the parts of the study, each as a function of a data set; later ones stand on earlier ones' results."""
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
        lambda data: variants(chosen, data, SEEDS) if data == "embedded" else (),
        lambda data: regimes(chosen, data, SEEDS),
    ]


def study(record: Record, worlds: Mapping[str, World], config: Config, waves: Sequence[Wave], workers: int) -> None:
    """Make every run that the record does not hold, and show how far it is."""
    with shown_progress() as reporter, worker_pool(workers) as pool:
        for number, wave in enumerate(waves, start=1):
            runs = [run for data in worlds for run in wave(data) if not record.has(run)]
            for run in runs:
                know(config, worlds[run.data], run.knowledge, reporter)
            futures = [pool.submit(train, run, worlds[run.data], config) for run in runs]
            for done, future in enumerate(as_completed(futures), start=1):
                row = future.result()
                record.add(row)
                reporter.progress(f"part {number} of {len(waves)}", done, len(runs), _line(row))


def _line(row: Mapping[str, Any]) -> str:
    name = f"{row['data']} {row['student']} {row['method']} {row['variant']}".rstrip()
    return f"{name} {row['weights']} seed {row['seed']}: validate {row['validate_micro_auprc']:.3f}"


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small part of the grid")
    parser.add_argument("--recordings", type=Path, help="folder in SONYC-UST's format")
    parser.add_argument("--workers", type=int, default=cpu_count(), help="trainings at once, a thread each")
    parser.add_argument("--report-only", action="store_true", help="train nothing; write the pages from the record")
    arguments = parser.parse_args()
    with readable_failures():
        if arguments.report_only:
            write_report(RECORD, ROOT / "docs", MACHINE.read_text().strip())
            return
        config = load(ROOT / "params.yaml")
        record = Record(WORK / "quick" / "science.csv" if arguments.quick else RECORD)
        sources = {"embedded": config}
        if arguments.recordings and not arguments.recordings.is_dir():
            raise InputError(f"{arguments.recordings}: no such folder; name one in SONYC-UST's format")
        if arguments.recordings:
            changes = {"source": "folder", "path": str(arguments.recordings)}
            dataset_section = config.dataset.model_copy(update=changes)
            if arguments.quick:
                sources.clear()
            sources[arguments.recordings.resolve().name] = config.model_copy(update={"dataset": dataset_section})
        with shown_progress() as reporter:
            worlds = {name: prepare(source, name, reporter) for name, source in sources.items()}
        for world in worlds.values():
            add_teacher(record, world)
        quick: list[Wave] = [lambda data: mains(usual(config), data, CORE, range(2), ("tiny", "small"))]
        study(record, worlds, config, quick if arguments.quick else whole_grid(record), arguments.workers)
        if not arguments.quick:
            MACHINE.write_text(machine() + "\n")
        write_report(record.path, WORK / "quick" if arguments.quick else ROOT / "docs", machine())


if __name__ == "__main__":
    main()
