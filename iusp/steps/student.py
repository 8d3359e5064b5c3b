"""Step 4: train one student, once for each of its seeds, from labels and the teacher's stored knowledge."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import cpu_count
from torch import Tensor

from iusp import models
from iusp.artifacts.records import Row
from iusp.config.students import Distillation, Student
from iusp.distillation.losses import DistillationLosses, Subject
from iusp.distillation.skill import cluster_layers
from iusp.io.files import code_digest, digest, sha256, work_folder
from iusp.io.processes import worker_pool
from iusp.reporter import Reporter
from iusp.training.knowledge import Knowledge, ask, read_knowledge
from iusp.training.loop import (
    Batch,
    TrainingData,
    batches,
    check_layers,
    epoch_order,
    label_loss,
    layer_channels,
    new_network,
    read_training_data,
    train,
)

# SKILL: into so many clusters, by so many clips, the teacher's layers are divided.
CLUSTERS = 2
CLUSTERED_CLIPS = 256


def run_name(student: str, seed: int) -> str:
    """Return the name of a student's MLflow run for one seed."""
    return f"{student}-seed-{seed}"


@dataclass(frozen=True)
class Job:
    """One seed of a student.

    Attributes:
        student: the student's own settings.
        weights: λ by method.
        common: what all students share.
        seed: of initialisation and order.
        dataset: folder that the dataset step wrote.
        features: folder that the features step wrote.
        teacher: folder that the teacher step wrote.
        folder: to write into.
    """

    student: Student
    weights: dict[str, float]
    common: Distillation
    seed: int
    dataset: Path
    features: Path
    teacher: Path
    folder: Path


def run(
    name: str,
    student: Student,
    common: Distillation,
    dataset: Path,
    features: Path,
    teacher: Path,
    output: Path,
    reporter: Reporter,
    cores: int = cpu_count(),
) -> dict[int, dict[str, Any]]:
    """Write `seed-<seed>/` (weights, config, record) for each seed into `output`.

    Seeds are trained in parallel processes, as many as the cores allow; that does not change a byte. A killed run goes
    on from each seed's last epoch.

    Args:
        name: the student's.
        student: its own settings.
        common: what all students share.
        dataset: folder that the dataset step wrote.
        features: folder that the features step wrote.
        teacher: folder that the teacher step wrote.
        output: folder to write.
        reporter: receives each epoch of each seed.
        cores: to be used.

    Returns:
        Each seed's `config.json`.

    Raises:
        InputError: labels, features and knowledge do not fit, the network has fewer layers than are tapped, or training
            diverges.
    """
    weights = student.loss_weights(common.weights)
    inputs: list[Any] = [
        name,
        student.model_dump(mode="json"),
        common.model_dump(mode="json"),
        sha256(dataset / "labels.parquet"),
    ]
    inputs += [sha256(features / "features.json"), sha256(teacher / "knowledge" / "knowledge.json")]
    with work_folder(output, digest([*inputs, code_digest()])) as folder:
        jobs = [
            Job(student, weights, common, seed, dataset, features, teacher, folder / f"seed-{seed}")
            for seed in student.seeds
        ]
        rows: SimpleQueue[tuple[int, Row]] = get_context("spawn").SimpleQueue()
        workers = min(len(jobs), max(1, cores // common.training.threads))
        with worker_pool(workers, _connect, (rows,)) as pool:
            futures = [pool.submit(_train, job) for job in jobs]
            while not (all(future.done() for future in futures) and rows.empty()):
                if rows.empty():
                    time.sleep(0.1)
                else:
                    seed, row = rows.get()
                    reporter.epoch(run_name(name, seed), row, common.training.epochs)
            descriptions = [future.result() for future in futures]
    return {one["seed"]: one for one in descriptions}


_rows: "SimpleQueue[tuple[int, Row]]"


def _connect(rows: "SimpleQueue[tuple[int, Row]]") -> None:
    global _rows
    _rows = rows


def _train(job: Job) -> dict[str, Any]:
    """Train one seed in a process of its own."""
    return learn(job, lambda row: _rows.put((job.seed, row)))


def learn(job: Job, on_epoch: Callable[[Row], None]) -> dict[str, Any]:
    """Train one seed and write its weights, config and record into the job's folder.

    Args:
        job: what to do.
        on_epoch: told of each row of the training record.

    Returns:
        The seed's `config.json`.

    Raises:
        InputError: as of `run`.
    """
    job.folder.mkdir(exist_ok=True)
    data = read_training_data(job.dataset, job.features, models.read_config(job.teacher, "teacher")["predicts"])
    knowledge = read_knowledge(job.teacher, data)
    config = job.common.training
    network, description = new_network(job.student.architecture, job.student.parameters, data, config, job.seed)
    tapped = job.student.tapped(job.common.layers)
    description |= {"method": job.student.method, "weights": job.weights, "layers": tapped}
    description |= {"knowledge": job.common.knowledge, "teacher": knowledge.description["teacher"]}
    channels = layer_channels(network, data)
    for method, layers in tapped.items():
        if method != "skill":  # which taps the teacher's layers
            check_layers(f"layers.{method} of a {job.student.architecture}", layers, len(channels))
    names = job.student.knowledge_names(job.common.layers)
    subject = _subject(channels, data, knowledge, names, tapped.get("skill", ()))
    distillation = DistillationLosses(job.weights, tapped, job.common.temperature, subject).to(network.device)
    teacher = models.load(job.teacher)[0].to(network.device) if job.common.knowledge == "online" else None

    def epoch_batches(epoch: int) -> Iterator[Batch]:
        order = epoch_order(len(data.clips), job.seed, epoch)
        if teacher is None:
            number = epoch % knowledge.views
            known = {name: knowledge.read(name, number) for name in names}
            yield from batches(data, knowledge.view(number), order, config.batch_size, network.device, known)
        else:
            view = knowledge.new_view(job.seed, epoch)
            for batch in batches(data, view, order, config.batch_size, network.device, {}):
                yield replace(batch, knowledge=ask(teacher, batch.log_mel, names)) if names else batch

    def losses(logits: Tensor, maps: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        terms = {"labels": label_loss(logits, batch.targets, batch.mask)}
        terms.update(distillation(logits, maps, batch.targets, batch.mask, batch.knowledge))
        return terms

    return train(network, description, data, epoch_batches, losses, config, job.folder, on_epoch, distillation)


def _subject(
    channels: Sequence[int], data: TrainingData, knowledge: Knowledge, names: Sequence[str], clustered: Sequence[int]
) -> Subject:
    """Look up what the losses must know of student and teacher."""
    teacher = {name: knowledge.read(name, 0).shape[1:] for name in names}
    clusters: list[tuple[int, ...]] = []
    if clustered:
        similarities = np.stack([knowledge.read(f"similarity-{layer}", 0)[:CLUSTERED_CLIPS] for layer in clustered])
        found = cluster_layers(torch.from_numpy(similarities.astype(np.float32)), min(CLUSTERS, len(clustered)))
        clusters = [tuple(clustered[index] for index in cluster) for cluster in found]
    columns = {tag: column for column, tag in enumerate(data.clips.tags)}
    fine = data.taxonomy.fine
    families = [
        (columns[tag], [columns[name] for name in fine[category]])
        for category, tag in data.taxonomy.coarse.items()
        if tag in columns and set(fine[category]) <= set(columns)
    ]
    return Subject(channels, len(columns), teacher, clusters, families)
