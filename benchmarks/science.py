"""Compare all methods of distillation on one teacher's knowledge, with enough seeds to tell.

python -m benchmarks.science                 every run that benchmarks/science.csv does not hold yet; one to two hours
python -m benchmarks.science --quick         a small part of the grid into data/science/quick.csv; ten minutes at most

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
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pandas as pd
from joblib import cpu_count
from torch import Tensor

from iusp import models
from iusp.augmentation import View, augment
from iusp.config import Augmentation, Config, Student, load
from iusp.console import readable_failures, shown_progress
from iusp.distillation.losses import Distillation
from iusp.features import read_features
from iusp.files import atomic, digest
from iusp.knowledge import ask, read_knowledge, write_knowledge
from iusp.metrics import score
from iusp.parallel import worker_pool
from iusp.progress import Progress
from iusp.scoring import score_table, truth_table
from iusp.steps import dataset, features, student, teacher
from iusp.taxonomy import read_taxonomy
from iusp.training import TrainingData, predict, read_training_data

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "science.csv"
WORK = ROOT / "data" / "science"

SIZES = {"tiny": ("cnn_lstm", 3500), "small": ("plain", 7000), "large": ("cnn_lstm", 95_000)}
SEARCHED = "small"
CORE = ("labels", "kd", "sp", "iusp", "iusp+kd")
# Values of λ that are tried, of the learning rate for labels alone, and for a combination of the weight of its first
# term beside the others' own best. The same number for each.
SEARCH: dict[str, tuple[float, ...]] = {
    "labels": (0.005, 0.01, 0.02, 0.04),
    "kd": (1, 3, 10, 30),
    "sp": (10, 30, 100, 300),
    "iusp": (10, 30, 100, 300),
    "iusp_centred": (1, 3, 10, 30),
    "iusp_scales": (10, 30, 100, 300),
    "skill": (10, 30, 100, 300),
    "attention": (30, 100, 300, 1000),
    "fitnet": (0.3, 1, 3, 10),
    "vic": (0.03, 0.1, 0.3, 1),
    "inter": (0.1, 0.3, 1, 3),
    "non_target": (1, 3, 10, 30),
    "multilevel": (1, 3, 10, 30),
    "iusp+kd": (3, 10, 30, 100),
    "sp+kd": (10, 30, 100, 300),
    "attention+kd": (30, 100, 300, 1000),
}
SEARCH_SEEDS = (1000, 1001)
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


RESULTS = (
    *("architecture", "parameters", "kept_epoch", "validate_micro_auprc", "micro_auprc", "macro_auprc", "cpu_seconds"),
)
COLUMNS = (*(field.name for field in fields(Run)), *RESULTS)

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


def prepare(config: Config, name: str, progress: Progress) -> World:
    """Run the steps that come before students, but for what is there already."""
    settings = [config.dataset, config.features, config.augmentation, config.teacher]
    key = digest([section.model_dump(mode="json", by_alias=True) for section in settings])
    world = World(name, WORK / f"{name}-{key[:12]}")
    if not world.dataset.exists():
        dataset.run(config.dataset, world.dataset, world.folder / "recordings", progress)
    if not world.features.exists():
        features.run(config.features, world.dataset, world.folder / "recordings", world.features, progress)
    _teach(config, world, "light", progress)
    views = config.augmentation.views
    clean = views.model_copy(update={"roll": False, "gain_db": 0.0})
    _ask_about(config, world, "clean", clean, 1, progress)
    _ask_about(config, world, "heavy", config.augmentation.teacher, config.teacher.views, progress)
    return world


def _teach(config: Config, world: World, kind: str, progress: Progress, **changes: Any) -> None:
    output = world.teacher(kind)
    settings = config.teacher.model_copy(
        update={
            "knowledge": ["logits", "pooled", "similarity", "embedding", "attention", "hints"],
            "layers": [1, 2, 3, 4],
        }
        | changes
    )
    if not output.exists():

        def told(row: Mapping[str, Any]) -> None:
            progress(f"{world.name}: teacher {kind}", int(row["epoch"]), settings.training.epochs)

        teacher.run(settings, config.augmentation, world.dataset, world.features, output, progress, told)


def _data(world: World, kind: str = "light") -> TrainingData:
    predicts = json.loads((world.teacher(kind) / "config.json").read_text())["predicts"]
    return read_training_data(world.dataset, world.features, predicts)


def _same_teacher(world: World, kind: str) -> Path | None:
    """Copy the teacher, without its knowledge, to a folder to write other knowledge into; None where that was done."""
    output = world.teacher(kind)
    if output.exists():
        return None
    work = output.with_name(f".{kind}.part")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(world.teacher("light"), work, ignore=shutil.ignore_patterns("knowledge"))
    return work


def _ask_about(config: Config, world: World, kind: str, views: Augmentation, count: int, progress: Progress) -> None:
    """Ask the teacher about other views."""
    if (work := _same_teacher(world, kind)) is not None:
        data, names = _data(world), ["logits", "similarity-1", "embedding-1"]
        network = models.load(work)[0]
        write_knowledge(work, network, data, views, config.teacher.seed, count, names, progress)
        work.rename(world.teacher(kind))


def average_teachers(config: Config, world: World, progress: Progress) -> None:
    """Average the knowledge of three teachers: probabilities, and similarities."""
    for seed in (1, 2):
        _teach(config, world, f"seed-{seed}", progress, seed=seed, knowledge=["logits", "similarity"], layers=[1])
    if (work := _same_teacher(world, "ensemble")) is not None:
        data = _data(world)
        own = read_knowledge(world.teacher("light"), data)
        shutil.copytree(own.folder, work / "knowledge", ignore=shutil.ignore_patterns("*.npy"))
        others = [models.load(world.teacher(f"seed-{seed}"))[0] for seed in (1, 2)]
        for number in range(own.views):
            answers = [{name: own.read(name, number).astype(np.float32) for name in ("logits", "similarity-1")}]
            answers += [_answers(network, data, own.view(number), ("logits", "similarity-1")) for network in others]
            probability = np.mean([1 / (1 + np.exp(-one["logits"])) for one in answers], axis=0).clip(1e-6, 1 - 1e-6)
            folder = work / "knowledge" / f"view-{number:03d}"
            np.save(folder / "logits.npy", np.log(probability / (1 - probability)).astype(np.float16))
            np.save(
                folder / "similarity-1.npy",
                np.mean([one["similarity-1"] for one in answers], axis=0, dtype=np.float32).astype(np.float16),
            )
            progress(f"{world.name}: ensemble", number + 1, own.views)
        work.rename(world.teacher("ensemble"))


def ask_about_clean_views(world: World, progress: Progress) -> None:
    """Keep what the teacher knows of the heavy views without their masks and mixup."""
    if (work := _same_teacher(world, "heavy-clean")) is not None:
        data, network = _data(world), models.load(work)[0]
        heavy = read_knowledge(world.teacher("heavy"), data)
        shutil.copytree(heavy.folder, work / "knowledge", ignore=shutil.ignore_patterns("*.npy"))
        for number in range(heavy.views):
            view = heavy.view(number)
            whole = replace(
                view,
                share=np.ones_like(view.share),
                time_masks=view.time_masks[:, :0],
                band_masks=view.band_masks[:, :0],
            )
            for name, array in _answers(network, data, whole, ("logits", "similarity-1", "embedding-1")).items():
                np.save(work / "knowledge" / f"view-{number:03d}" / f"{name}.npy", array.astype(np.float16))
            progress(f"{world.name}: clean knowledge", number + 1, heavy.views)
        work.rename(world.teacher("heavy-clean"))


def _answers(network: models.Tagger, data: TrainingData, view: View, names: Sequence[str]) -> dict[str, np.ndarray]:
    answers: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for rows in np.array_split(np.arange(len(data.clips)), -(-len(data.clips) // 64)):
        log_mel, _, _ = augment(view, data.clips, rows, data.features.mean)
        for name, tensor in ask(network, log_mel, names).items():
            answers[name].append(tensor.numpy())
    return {name: np.concatenate(parts) for name, parts in answers.items()}


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


class _Decaying(Distillation):
    """Weights that fall to zero in a straight line."""

    steps = 1

    def forward(self, *arguments: Any) -> dict[str, Tensor]:
        self.done = getattr(self, "done", 0) + 1
        return {name: (1 - self.done / self.steps) * loss for name, loss in super().forward(*arguments).items()}


# By variant: which knowledge is used, and what else differs.
KNOWLEDGE = {"ensemble": "ensemble", "clean knowledge": "heavy-clean", "tags both": "both"}


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
    optimisation = config.student.training.model_copy(
        update={
            "epochs": run.epochs,
            "patience": run.epochs,
            "batch_size": run.batch_size,
            "learning_rate": run.learning_rate,
            "threads": 1,
        }
    )
    common = config.student.model_copy(
        update={"training": optimisation, "knowledge": "online" if run.variant == "online" else "cached"}
    )
    folder = Path(mkdtemp(dir=world.folder))
    knowledge = world.teacher(KNOWLEDGE.get(run.variant, run.augmentation))
    job = student.Job(settings, weights, common, run.seed, world.dataset, world.features, knowledge, folder / "network")
    _Decaying.steps = run.epochs * (1500 // run.batch_size)
    student.Distillation = _Decaying if run.variant == "decay" else Distillation  # type: ignore[misc]
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
            self.rows = pd.read_csv(path, keep_default_na=False)[list(COLUMNS)].to_dict("records")

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        self.rows.append({column: row[column] for column in COLUMNS})
        with atomic(self.path) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False)

    def has(self, run: Run) -> bool:
        """Tell whether a run has been made."""
        return any(all(row[name] == value for name, value in asdict(run).items()) for row in self.rows)

    def best(self, data: str, method: str) -> dict[str, Any]:
        """Return the row of the search whose weights and learning rate are best on validate, on average."""
        table = pd.DataFrame(self.rows)
        table = table[(table["stage"] == "search") & (table["data"] == data) & (table["method"] == method)]
        means = table.groupby(["weights", "learning_rate"], sort=False)["validate_micro_auprc"].mean()
        weights, rate = means.idxmax()
        return {"weights": json.loads(weights), "learning_rate": float(rate)}


def searches(record: Record, data: str, methods: Iterable[str]) -> Iterator[Run]:
    """Return the runs of the search; those of combinations and of λ stand on earlier ones."""
    for method in methods:
        first, *others = method.split("+")
        for value in SEARCH[method]:
            if method == "labels":
                weights, rate = {}, float(value)
            else:
                rate = record.best(data, "labels")["learning_rate"]
                weights = {other: record.best(data, other)["weights"][other] for other in others}
                weights = {first: float(value)} | weights
            for seed in SEARCH_SEEDS:
                yield Run("search", data, SEARCHED, method, json.dumps(weights), rate, seed)


def chosen(record: Record, data: str, method: str) -> dict[str, Any]:
    """Return the searched settings of a method, as columns."""
    rate = record.best(data, "labels")["learning_rate"]
    return {"weights": json.dumps(record.best(data, method)["weights"]), "learning_rate": rate}


def mains(record: Record, data: str, methods: Iterable[str], seeds: Iterable[int]) -> Iterator[Run]:
    """Return the runs of the main comparison."""
    for seed in seeds:
        for size in SIZES:
            for method in methods:
                yield Run("main", data, size, method, seed=seed, **chosen(record, data, method))


def regimes(record: Record, data: str, seeds: Iterable[int]) -> Iterator[Run]:
    """Return the runs of the core methods in other regimes."""
    changes = [{"augmentation": "clean"}, {"augmentation": "heavy"}, {"batch_size": 64}, {"epochs": 60}]
    for change in changes:
        for seed in seeds:
            for method in CORE:
                run = Run("regime", data, SEARCHED, method, seed=seed, **chosen(record, data, method))
                yield replace(run, **change)


def variants(record: Record, data: str, seeds: Iterable[int]) -> Iterator[Run]:
    """Return the runs of what goes beyond the paper and is no method of its own."""
    for seed in seeds:
        for method in ("iusp", "kd"):
            run = Run("variant", data, SEARCHED, method, seed=seed, **chosen(record, data, method))
            yield replace(run, variant="online")
            yield replace(run, variant="ensemble")
            yield replace(run, variant="clean knowledge", augmentation="heavy")
            if method == "iusp":
                yield replace(run, variant="layers")
            yield replace(run, variant="decay")
        rate = record.best(data, "labels")["learning_rate"]
        for method, weights in (("labels", {}), ("consistency", {"consistency": 1.0})):
            yield Run("variant", data, SEARCHED, method, json.dumps(weights), rate, seed, variant="tags both")


def study(record: Record, config: Config, sources: Mapping[str, Path | None], workers: int, progress: Progress) -> None:
    """Make every run that the record does not hold."""
    worlds = {name: prepare(_with_source(config, source), name, progress) for name, source in sources.items()}
    for world in worlds.values():
        average_teachers(config, world, progress)
        ask_about_clean_views(world, progress)
        _teach(config, world, "both", progress, tags="both", knowledge=["logits"], layers=[1])
        add_teacher(record, world)
    singles = [method for method in SEARCH if "+" not in method]
    combinations = [method for method in SEARCH if "+" in method]
    waves: list[Callable[[str], Iterator[Run]]] = [
        lambda data: searches(record, data, ["labels"]),
        lambda data: searches(record, data, singles[1:]),
        lambda data: searches(record, data, combinations),
        lambda data: mains(record, data, CORE, SEEDS),
        lambda data: mains(record, data, [method for method in SEARCH if method not in CORE], SEEDS),
        lambda data: regimes(record, data, SEEDS),
        lambda data: mains(record, data, CORE, CORE_SEEDS),
        lambda data: variants(record, data, SEEDS),
    ]
    with worker_pool(workers) as pool:
        for number, wave in enumerate(waves):
            runs = [run for data in worlds for run in wave(data) if not record.has(run)]
            futures = [pool.submit(train, run, worlds[run.data], config) for run in runs]
            for done, future in enumerate(as_completed(futures), start=1):
                row = future.result()
                record.add(row)
                progress(f"part {number + 1} of {len(waves)}", done, len(runs), _line(row))


def _line(row: Mapping[str, Any]) -> str:
    name = f"{row['data']} {row['student']} {row['method']} {row['variant']}".rstrip()
    return f"{name} {row['weights']} seed {row['seed']}: validate {row['validate_micro_auprc']:.3f}"


def _with_source(config: Config, source: Path | None) -> Config:
    changes = {} if source is None else {"source": "folder", "path": str(source)}
    return config.model_copy(update={"dataset": config.dataset.model_copy(update=changes)})


def add_teacher(record: Record, world: World) -> None:
    """Put the teacher on record."""
    run = Run("teacher", world.name, "teacher", "labels", "{}", 0.0, 0, augmentation="heavy")
    if not record.has(run):
        record.add(asdict(run) | {"cpu_seconds": 0.0} | measured(world.teacher("light"), world))


def main() -> None:
    """Run the study and show how far it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small part of the grid")
    parser.add_argument("--recordings", type=Path, help="folder in SONYC-UST's format")
    parser.add_argument("--workers", type=int, default=cpu_count(), help="trainings at once, a thread each")
    arguments = parser.parse_args()
    config = load(ROOT / "params.yaml")
    sources: dict[str, Path | None] = {"embedded": None}
    if arguments.recordings:
        sources[arguments.recordings.name] = arguments.recordings
    with readable_failures(), shown_progress() as progress:
        study(Record(RECORD), config, sources, arguments.workers, progress)


if __name__ == "__main__":
    main()
