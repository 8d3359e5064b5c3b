"""Data sets, their teachers, and what each teacher is asked."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import ignore_patterns
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from benchmarks.pages import ROOT
from iusp import models
from iusp.config.augmentation import Augmentation
from iusp.config.params import Config
from iusp.features.augmentation import View, augment
from iusp.io.files import digest, read_json, sha256, write_json
from iusp.models.layers import Tagger
from iusp.reporter import Reporter
from iusp.steps import dataset, features, teacher
from iusp.training.data import TrainingData, TrainingFolders, read_training_data
from iusp.training.knowledge import Knowledge, KnowledgeRequest, ask, read_knowledge, write_knowledge

WORK = ROOT / "data" / "science"
KINDS = ["logits", "pooled", "similarity", "embedding", "attention", "hints"]
"""Knowledge of the teacher that all methods together need."""


@dataclass(frozen=True)
class World:
    """A data set and its teachers.

    Attributes:
        name: name of the data set.
        folder: folder with the data set, its features, and a folder for each kind of knowledge.
    """

    name: str
    folder: Path

    @property
    def dataset(self) -> Path:
        """Folder that the dataset step wrote."""
        return self.folder / "dataset"

    @property
    def features(self) -> Path:
        """Folder that the features step wrote."""
        return self.folder / "features"

    def teacher(self, knowledge: str) -> Path:
        """Return the folder of the teacher with a kind of knowledge."""
        return self.folder / "teachers" / knowledge


def prepare(config: Config, name: str, reporter: Reporter) -> World:
    """Run the steps dataset, features and teacher, if their outputs are missing."""
    settings = [config.dataset, config.features, config.augmentation, config.teacher]
    key = digest([section.model_dump(mode="json", by_alias=True) for section in settings])
    world = World(name, WORK / f"{name}-{key[:12]}")
    if not world.dataset.exists():
        dataset.run(config.dataset, world.dataset, world.folder / "recordings", reporter)
    if not world.features.exists():
        inputs = features.Inputs(world.dataset, world.folder / "recordings")
        features.run(config.features, inputs, world.features, reporter)
    _teach(config, world, "light", reporter, knowledge=KINDS, layers=[1, 2, 3, 4])
    return world


def know(config: Config, world: World, kind: str, reporter: Reporter) -> None:
    """Make a kind of knowledge if it is missing: about other views, from other teachers, or about other tags."""
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
    """Train a teacher with other settings, if it is missing."""
    output, settings = world.teacher(kind), config.teacher.model_copy(update=changes)
    if not output.exists():
        teacher.run(settings, config.augmentation, TrainingFolders(world.dataset, world.features), output, reporter)


def _data(world: World) -> TrainingData:
    predicts = json.loads((world.teacher("light") / "config.json").read_text())["predicts"]
    return read_training_data(TrainingFolders(world.dataset, world.features), predicts)


@contextmanager
def _same_teacher(world: World, kind: str, *ignored: str) -> Iterator[Path]:
    """Yield a copy of the teacher, without the ignored files; at the end it becomes the folder of its new knowledge."""
    work = world.folder / f"{kind}.part"
    shutil.rmtree(work, ignore_errors=True)
    source = world.teacher("heavy" if kind == "heavy-clean" else "light")
    shutil.copytree(source, work, ignore=ignore_patterns(*ignored))
    yield work
    work.rename(world.teacher(kind))


def _ask_about(config: Config, world: World, kind: str, views: Augmentation, count: int, reporter: Reporter) -> None:
    """Store the knowledge of the teacher about other views."""
    with _same_teacher(world, kind, "knowledge") as folder:
        network = models.load(folder)[0]
        names = ("logits", "similarity-1", "embedding-1")
        request = KnowledgeRequest(views, config.teacher.seed, count, names)
        write_knowledge(folder, network, _data(world), request, reporter)


def _ask_without_masks(world: World, kind: str, reporter: Reporter) -> None:
    """Replace the knowledge about heavy views by that about the same views without masks and mixup."""
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
    """Replace probabilities and similarities by their means over three teachers."""
    for seed in (1, 2):
        _teach(config, world, f"seed-{seed}", reporter, seed=seed, views=1)
    with _same_teacher(world, kind) as folder:
        data = _data(world)
        knowledge = read_knowledge(folder, data)
        teachers = [models.load(world.teacher(name))[0] for name in ("light", "seed-1", "seed-2")]
        for number in range(knowledge.views):
            view = knowledge.view(number)
            answers = [_answers(network, data, view, "logits", "similarity-1") for network in teachers]
            probability = np.mean([expit(answer["logits"]) for answer in answers], axis=0)
            _put(knowledge, "logits", number, logit(probability.clip(1e-6, 1 - 1e-6)))
            _put(knowledge, "similarity-1", number, np.mean([answer["similarity-1"] for answer in answers], axis=0))
            reporter.progress(f"{world.name}: ensemble", number + 1, knowledge.views)


def _answers(network: Tagger, data: TrainingData, view: View, *names: str) -> dict[str, NDArray[np.float32]]:
    """Return the knowledge of a teacher about all clips of a view."""
    answers: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for rows in np.array_split(np.arange(len(data.clips)), -(-len(data.clips) // 64)):
        log_mel, _, _ = augment(view, data.clips, rows, data.features.mean)
        for name, tensor in ask(network, log_mel, names).items():
            answers[name].append(tensor.numpy())
    return {name: np.concatenate(parts) for name, parts in answers.items()}


def _put(knowledge: Knowledge, name: str, view: int, array: NDArray[np.floating[Any]]) -> None:
    """Replace an array of the stored knowledge, and its digest."""
    path = knowledge.folder / f"view-{view:03d}" / f"{name}.npy"
    path.unlink()
    np.save(path, array.astype(np.float16))
    index = knowledge.folder / "knowledge.json"
    description = read_json(index)
    description["sha256"][f"{path.parent.name}/{name}"] = sha256(path)
    write_json(index, description)
