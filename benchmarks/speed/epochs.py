"""One epoch of a teacher's or student's training, put together as the steps do it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from iusp.artifacts.networks import NetworkFolder
from iusp.config.augmentation import Augmentation
from iusp.config.base import Architecture
from iusp.config.students import Recipe, Student
from iusp.config.training import Training
from iusp.distillation.losses import DistillationLosses
from iusp.distillation.method import Outputs, Subject
from iusp.features.augmentation import View
from iusp.models.layers import Tagger
from iusp.reporter import Reporter
from iusp.training.data import Batch, TrainingData, batches, epoch_order
from iusp.training.knowledge import Knowledge, KnowledgeRequest, ask, write_knowledge
from iusp.training.loop import label_loss, train_epoch
from iusp.training.networks import layer_channels, new_network

NAMES = {"labels": (), "kd": ("logits",), "sp": ("embedding-1",), "iusp": ("similarity-1",)}


@dataclass(frozen=True)
class Setting:
    """A network, and how it is trained.

    Attributes:
        architecture: family of the network.
        parameters: largest number of parameters of the network.
        config: training settings, of which `precision`, `batch_size` and `device` are used.
        contiguous: whether to use contiguous memory instead of channels-last.
        clips: number of clips in an epoch; None means all clips.
    """

    architecture: Architecture
    parameters: int
    config: Training
    contiguous: bool = False
    clips: int | None = None


def untrained_teacher(
    architecture: Architecture,
    parameters: int,
    data: TrainingData,
    config: Training,
    augmentation: Augmentation,
    folder: Path,
) -> Tagger:
    """Write an untrained teacher and its knowledge of one view of each clip; this takes as long as with training."""
    teacher, description = new_network(architecture, parameters, data, config, 0)
    NetworkFolder(folder).save(teacher, description)
    names = [name for names in NAMES.values() for name in names]
    write_knowledge(folder, teacher.eval(), data, KnowledgeRequest(augmentation, 0, 1, names), Reporter())
    return teacher


def epoch(
    setting: Setting,
    data: TrainingData,
    view: View,
    method: str = "labels",
    knowledge: Knowledge | None = None,
    teacher: Tagger | None = None,
) -> Callable[[], object]:
    """Return a function that trains a student for one epoch.

    Args:
        setting: the student, and how it is trained.
        data: the training clips.
        view: random numbers of the augmentation, which turn each clip into a view.
        method: `labels`, `kd`, `sp` or `iusp`.
        knowledge: stored knowledge of the teacher; None if the method needs no knowledge.
        teacher: teacher that runs in the training loop in place of the stored knowledge; None to use the stored
            knowledge.
    """
    config = setting.config
    network, _ = new_network(setting.architecture, setting.parameters, data, config, 0)
    if setting.contiguous:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    names = NAMES[method]
    student = Student(architecture=setting.architecture, parameters=setting.parameters, method=method, seeds=[0])
    weights = {} if method == "labels" else {method: 1.0}
    layers = {method: [1]} if method in ("sp", "iusp") else {}
    recipe = Recipe(
        name="timed",
        student=student,
        weights=weights,
        layers=layers,
        temperature=1.0,
        knowledge="cached",
        training=config,
    )
    subject = Subject(layer_channels(network, data), data.clips.tags, data.taxonomy, lambda name: stored[name])
    stored = {name: knowledge.read(name, 0) for name in names} if knowledge else {}
    distillation = DistillationLosses(recipe, subject)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=10**6)
    order = epoch_order(len(data.clips), 0, 0)[: setting.clips]

    def stream() -> Iterator[Batch]:
        known = {name: knowledge.read(name, 0) for name in names} if knowledge and not teacher else {}
        for batch in batches(data, view, order, config.batch_size, network.device, known):
            yield replace(batch, knowledge=ask(teacher, batch.log_mel, names)) if teacher else batch

    def losses(logits: Tensor, maps: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        terms = {"labels": label_loss(logits, batch.targets, batch.mask)}
        terms.update(distillation(Outputs(logits, maps, batch.targets, batch.mask, batch.knowledge)))
        return terms

    return lambda: train_epoch(network, stream(), losses, optimiser, schedule, config.precision)
