"""Step 4: train one student, once for each of its seeds, from labels and the teacher's stored knowledge."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
from joblib import cpu_count
from torch import Tensor

from iusp.artifacts.base import seed_name
from iusp.artifacts.networks import StudentConfig, TeacherFolder
from iusp.artifacts.records import Row
from iusp.config.methods import METHODS
from iusp.config.students import Recipe
from iusp.distillation.losses import DistillationLosses
from iusp.distillation.method import Outputs, Subject
from iusp.io.files import code_digest, digest, sha256, work_folder
from iusp.io.processes import worker_pool
from iusp.models.layers import Tagger
from iusp.reporter import Reporter
from iusp.training.data import Batch, TrainingFolders, batches, epoch_order, read_training_data
from iusp.training.knowledge import Knowledge, ask, read_knowledge
from iusp.training.loop import TrainingJob, label_loss, train
from iusp.training.networks import check_layers, layer_channels, new_network


@dataclass(frozen=True)
class StudentInputs:
    """What a student is trained from.

    Attributes:
        folders: folders that the dataset step and the features step wrote.
        teacher: folder that the teacher step wrote.
    """

    folders: TrainingFolders
    teacher: TeacherFolder


@dataclass(frozen=True)
class SeedJob:
    """One seed of a student.

    Attributes:
        recipe: what shapes the student.
        seed: seed of the initialisation and of the order of the clips.
        inputs: what the student is trained from.
        folder: folder to write.
    """

    recipe: Recipe
    seed: int
    inputs: StudentInputs
    folder: Path


def run(
    recipe: Recipe, inputs: StudentInputs, output: Path, reporter: Reporter, cores: int = cpu_count()
) -> dict[int, StudentConfig]:
    """Write `seed-<seed>/` (weights, config, training record) for each seed into the output folder.

    Seeds are trained in parallel processes, as many as the cores allow; that does not change a byte. A killed run
    resumes from the last epoch of each seed.

    Args:
        recipe: what shapes the student.
        inputs: what the student is trained from.
        output: folder to write.
        reporter: receives each epoch of each seed.
        cores: number of CPU cores to use.

    Returns:
        The `config.json` of each seed.

    Raises:
        InputError: labels, features and knowledge do not belong together, a network has fewer layers than the recipe
            names, or training diverges.
    """
    identity: list[Any] = [recipe.model_dump(mode="json"), sha256(inputs.folders.labels)]
    identity += [sha256(inputs.folders.features / "features.json")]
    identity += [sha256(inputs.teacher.path / "knowledge" / "knowledge.json")]
    with work_folder(output, digest([*identity, code_digest()])) as folder:
        jobs = [SeedJob(recipe, seed, inputs, folder / f"seed-{seed}") for seed in recipe.student.seeds]
        rows: SimpleQueue[tuple[int, Row]] = get_context("spawn").SimpleQueue()
        workers = min(len(jobs), max(1, cores // recipe.training.threads))
        with worker_pool(workers, _connect, (rows,)) as pool:
            futures = [pool.submit(_learn_in_worker, job) for job in jobs]
            while not (all(future.done() for future in futures) and rows.empty()):
                if rows.empty():
                    time.sleep(0.1)
                else:
                    seed, row = rows.get()
                    reporter.epoch(seed_name(recipe.name, seed), row, recipe.training.epochs)
            descriptions = [future.result() for future in futures]
    return {description.seed: description for description in descriptions}


_rows: "SimpleQueue[tuple[int, Row]]"


def _connect(rows: "SimpleQueue[tuple[int, Row]]") -> None:
    global _rows
    _rows = rows


def _learn_in_worker(job: SeedJob) -> StudentConfig:
    return learn(job, lambda row: _rows.put((job.seed, row)))


def learn(job: SeedJob, on_epoch: Callable[[Row], None]) -> StudentConfig:
    """Train one seed and write its weights, config and training record into the job's folder.

    Args:
        job: the seed and what it is trained from.
        on_epoch: receives each row of the training record.

    Returns:
        The seed's `config.json`.

    Raises:
        InputError: see `run`.
    """
    job.folder.mkdir(exist_ok=True)
    description = train(_training_job(job), job.folder, on_epoch)
    assert isinstance(description, StudentConfig)
    return description


def _training_job(job: SeedJob) -> TrainingJob:
    recipe, student = job.recipe, job.recipe.student
    data = read_training_data(job.inputs.folders, job.inputs.teacher.config.predicts)
    knowledge = read_knowledge(job.inputs.teacher.path, data)
    network, description = new_network(student.architecture, student.parameters, data, recipe.training, job.seed)
    config = StudentConfig(
        **dict(description),
        method=student.method,
        weights=recipe.weights,
        layers=recipe.layers,
        knowledge=recipe.knowledge,
        teacher=knowledge.description.teacher,
    )
    channels = layer_channels(network, data)
    for method, layers in recipe.layers.items():
        if METHODS[method].layers_of == "student":
            check_layers(f"layers.{method} of a {student.architecture}", layers, len(channels))
    subject = Subject(channels, data.clips.tags, data.taxonomy, lambda name: knowledge.read(name, 0))
    distillation = DistillationLosses(recipe, subject).to(network.device)

    def losses(logits: Tensor, maps: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        outputs = Outputs(logits, maps, batch.targets, batch.mask, batch.knowledge)
        terms = {"labels": label_loss(logits, batch.targets, batch.mask)}
        terms.update(distillation(outputs))
        return terms

    teacher = job.inputs.teacher.load().to(network.device) if recipe.knowledge == "online" else None

    def epoch_batches(epoch: int) -> Iterator[Batch]:
        if teacher:
            return _asked_batches(knowledge, job, epoch, teacher)
        return _stored_batches(knowledge, job, epoch, network.device)

    return TrainingJob(network, config, data, epoch_batches, losses, recipe.training, distillation)


def _stored_batches(knowledge: Knowledge, job: SeedJob, epoch: int, device: torch.device) -> Iterator[Batch]:
    """Stream the batches of an epoch with the teacher's stored knowledge of their view."""
    number = epoch % knowledge.views
    stored = {name: knowledge.read(name, number) for name in job.recipe.knowledge_names}
    order = epoch_order(len(knowledge.data.clips), job.seed, epoch)
    view, batch_size = knowledge.view(number), job.recipe.training.batch_size
    return batches(knowledge.data, view, order, batch_size, device, stored)


def _asked_batches(knowledge: Knowledge, job: SeedJob, epoch: int, teacher: Tagger) -> Iterator[Batch]:
    """Stream the batches of an epoch, in a new view; the teacher computes its knowledge of each batch."""
    names = job.recipe.knowledge_names
    order = epoch_order(len(knowledge.data.clips), job.seed, epoch)
    view, batch_size = knowledge.new_view(job.seed, epoch), job.recipe.training.batch_size
    for batch in batches(knowledge.data, view, order, batch_size, teacher.device):
        yield replace(batch, knowledge=ask(teacher, batch.log_mel, names)) if names else batch
