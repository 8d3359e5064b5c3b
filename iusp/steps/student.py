"""Step 4: train one student, once for each of its seeds, from labels and the teacher's stored knowledge."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from joblib import cpu_count
from torch import Tensor

from iusp.config import Student, StudentTraining
from iusp.distillation.losses import NEEDS, distillation_losses
from iusp.files import code_digest, digest, read_json, sha256, work_folder
from iusp.knowledge import read_knowledge
from iusp.parallel import worker_pool
from iusp.records import Row
from iusp.training import (
    Batch,
    batches,
    epoch_order,
    label_loss,
    new_network,
    read_training_data,
    train,
)


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
    common: StudentTraining
    seed: int
    dataset: Path
    features: Path
    teacher: Path
    folder: Path


def run(
    name: str,
    student: Student,
    common: StudentTraining,
    dataset: Path,
    features: Path,
    teacher: Path,
    output: Path,
    on_epoch: Callable[[int, Row], None],
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
        on_epoch: told of a seed and each row of its training record.
        cores: to be used.

    Returns:
        Each seed's `config.json`.

    Raises:
        InputError: labels, features and knowledge do not fit, or training diverges.
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
                    on_epoch(*rows.get())
            descriptions = [future.result() for future in futures]
    return {one["seed"]: one for one in descriptions}


_rows: "SimpleQueue[tuple[int, Row]]"


def _connect(rows: "SimpleQueue[tuple[int, Row]]") -> None:
    global _rows
    _rows = rows


def _train(job: Job) -> dict[str, Any]:
    """Train one seed in a process of its own."""
    job.folder.mkdir(exist_ok=True)
    data = read_training_data(job.dataset, job.features, read_json(job.teacher / "config.json", "predicts")["predicts"])
    knowledge = read_knowledge(job.teacher, data)
    network, description = new_network(
        job.student.architecture, job.student.parameters, data, job.common.training, job.seed
    )
    description |= {"method": job.student.method, "weights": job.weights, "teacher": knowledge.description["teacher"]}

    def epoch_batches(epoch: int) -> Iterator[Batch]:
        number = epoch % knowledge.views
        known = {NEEDS[method]: knowledge.read(NEEDS[method], number) for method in job.weights}
        order = epoch_order(len(data.clips), job.seed, epoch)
        size = job.common.training.batch_size
        return batches(data, knowledge.view(number), order, size, network.device, known)

    def losses(logits: Tensor, frames: Tensor, batch: Batch) -> dict[str, Tensor]:
        labels = {"labels": label_loss(logits, batch.targets, batch.mask)}
        return labels | distillation_losses(logits, frames, batch.knowledge, job.weights, job.common.temperature)

    def on_epoch(row: Row) -> None:
        _rows.put((job.seed, row))

    return train(network, description, data, epoch_batches, losses, job.common.training, job.folder, on_epoch)
