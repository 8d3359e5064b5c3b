"""The training loop of teachers and students.

A training run that was killed resumes and ends with the same result. On the CPU, the same seed gives the same bytes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from iusp.artifacts.networks import CONFIG, NetworkConfig, NetworkFolder
from iusp.artifacts.records import Row, TrainingRecord
from iusp.config.training import Training
from iusp.errors import InputError
from iusp.io.memory import keep_memory
from iusp.models.layers import Tagger
from iusp.training import distributed
from iusp.training.checkpoint import Checkpoint, History, Stateful
from iusp.training.data import Batch, TrainingData

Losses = Callable[[Tensor, tuple[Tensor, ...], Batch], dict[str, Tensor]]
"""Function that returns named, weighted losses for logits, feature maps and a batch; their sum is minimised."""


def label_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return the binary cross-entropy, averaged over the known labels of all processes.

    Args:
        logits: logits (B, K).
        targets: labels (B, K) in [0, 1].
        mask: bool (B, K), True where the label is known.
    """
    losses = binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return distributed.summed((losses * mask).sum()) / distributed.summed(mask.sum()).clamp_min(1)


@dataclass(frozen=True)
class TrainingJob:
    """A network and everything that its training run depends on.

    Attributes:
        network: the network, on the device that trains it.
        description: content of `config.json` of the network, which `train` completes.
        data: the training clips, and the validation clips that choose the best epoch.
        epoch_batches: function that takes the number of an epoch, from 0, and returns the batches of the epoch.
        losses: the losses that are minimised.
        config: settings of the optimisation.
        auxiliary: modules that the losses train together with the network, on the same device; they are not saved with
            the network.
    """

    network: Tagger
    description: NetworkConfig
    data: TrainingData
    epoch_batches: Callable[[int], Iterator[Batch]]
    losses: Losses
    config: Training
    auxiliary: nn.Module


def train(job: TrainingJob, folder: Path, on_epoch: Callable[[Row], None]) -> NetworkConfig:
    """Train a network, and save it as it was after the epoch that is best on the validation clips.

    The run ends when all epochs are done, or when the AUPRC has not improved for `patience` epochs. It writes
    `weights.safetensors`, `config.json` and `record.csv` into the folder. It saves a checkpoint after each epoch. A run
    that was killed resumes from the checkpoint and ends with the same bytes as a run that was not killed. If the folder
    contains a finished run, its network is loaded instead. If there are several processes, only the first process reads
    and writes the folder, validates the network, and reports the epochs.

    Args:
        job: the network and everything that its training run depends on.
        folder: folder to write.
        on_epoch: function that receives the row of each epoch, including the epochs in a checkpoint.

    Returns:
        The description of the job, completed by the number of the best epoch and the micro-averaged AUPRC of this epoch
        on the validation clips. In the first process, the description also has the SHA-256 of the network weights.

    Raises:
        InputError: training diverges, a checkpoint is damaged, or a batch has fewer clips than there are processes.
    """
    _prepare_torch(job)
    batch_size = min(job.config.batch_size, len(job.data.clips))
    if batch_size < distributed.ranks():
        raise InputError(f"{distributed.ranks()} processes cannot share batches of {batch_size} clips; start fewer")
    if (finished := _load_finished(job, folder)) is not None:
        return finished
    optimiser = torch.optim.AdamW(
        [*job.network.parameters(), *job.auxiliary.parameters()],
        lr=job.config.learning_rate,
        weight_decay=job.config.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        job.config.learning_rate,
        epochs=job.config.epochs,
        steps_per_epoch=len(job.data.clips) // batch_size,
    )
    parts: dict[str, Stateful] = {
        "network": job.network,
        "auxiliary": job.auxiliary,
        "optimiser": optimiser,
        "schedule": schedule,
    }
    checkpoint = Checkpoint(folder / "checkpoint.pt", parts)
    history = checkpoint.restore(job.network.device)
    is_first = distributed.rank() == 0
    for row in history.record if is_first else []:
        on_epoch(row)
    trained = distributed.wrap_ddp(job.network)
    while not history.is_finished(job.config.epochs, job.config.patience):
        row = _run_epoch(job, trained, len(history.record), optimiser, schedule)
        history.add(row, job.network)
        if is_first:
            checkpoint.save(history)
            on_epoch(row)
    return _save_best(job, history, checkpoint, folder)


def _prepare_torch(job: TrainingJob) -> None:
    """Configure PyTorch so that, on the CPU, the same job gives the same bytes."""
    keep_memory()
    _use_threads(job.config.threads)
    torch.use_deterministic_algorithms(job.network.device.type == "cpu")
    # PyTorch would fill new memory, which costs time and does not change the result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _use_threads(threads: int) -> None:
    """Set the number of PyTorch's CPU threads, and make MKL choose the code of its vector functions.

    MKL 2024 chooses the code of a function at its first call. If several threads make that call at once, one of them
    may get code of low accuracy, and the bytes differ (https://github.com/pytorch/pytorch/issues/188792).
    """
    torch.set_num_threads(threads)
    for function in (torch.exp, torch.log, torch.sqrt, torch.tanh):
        function(torch.ones(1))


def _load_finished(job: TrainingJob, folder: Path) -> NetworkConfig | None:
    """Load the network of a finished training run and return its `config.json`; None if no run has finished."""
    path, is_first = folder / CONFIG, distributed.rank() == 0
    content = distributed.from_first(path.read_bytes() if is_first and path.exists() else None)
    if content is None:
        return None
    if is_first:
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        job.network.load_state_dict(NetworkFolder(folder).load().state_dict())
    return type(job.description).model_validate_json(content)


def _run_epoch(
    job: TrainingJob,
    trained: nn.Module,
    epoch: int,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> Row:
    """Train for one epoch, validate the network, and return the row of the epoch."""
    row = {"epoch": epoch + 1, "learning_rate": float(schedule.get_last_lr()[0])}
    row |= train_epoch(trained, job.epoch_batches(epoch), job.losses, optimiser, schedule, job.config.precision)
    auprc = job.data.validation_auprc(job.network) if distributed.rank() == 0 else 0.0
    row["validate_micro_auprc"] = float(distributed.summed(torch.tensor(auprc, dtype=torch.float64)))
    if not all(map(math.isfinite, row.values())):
        raise InputError(f"training diverged in epoch {epoch + 1}; lower training.learning_rate")
    return row


def _save_best(job: TrainingJob, history: History, checkpoint: Checkpoint, folder: Path) -> NetworkConfig:
    """Load the network weights of the best epoch into the network, and write the folder."""
    job.network.load_state_dict(history.best)
    best = {"epoch": history.best_epoch + 1, "validate_micro_auprc": history.best_score}
    description = job.description.model_copy(update=best)
    if distributed.rank() == 0:
        TrainingRecord(history.record).write(folder)
        description = NetworkFolder(folder).save(job.network, description)
        checkpoint.remove()
    return description


def train_epoch(
    network: nn.Module,
    epoch_batches: Iterator[Batch],
    losses: Losses,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    precision: str,
) -> dict[str, float]:
    """Train for one epoch.

    Args:
        network: the network, on the device that trains it.
        epoch_batches: batches of the epoch, on the same device.
        losses: the losses that are minimised.
        optimiser: optimiser of the network and of the auxiliary modules.
        schedule: learning-rate schedule; it advances by one step per batch.
        precision: number format of the network's arithmetic, `float32` or `bfloat16`; the losses use float32.

    Returns:
        The mean of each loss over the batches, under the name `loss_<name>`.
    """
    network.train()
    sums: dict[str, Tensor] = {}
    steps = 0
    for batch in epoch_batches:
        with torch.autocast(batch.log_mel.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits, maps = network(batch.log_mel)
        terms = losses(logits, maps, batch)
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        steps += 1
        for name, term in terms.items():
            sums[name] = sums.get(name, torch.zeros((), device=term.device)) + term.detach()
    return {f"loss_{name}": float(total) / steps for name, total in sums.items()}
