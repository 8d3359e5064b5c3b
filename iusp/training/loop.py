"""One training loop for teachers and students: exactly resumable, and the same bytes from the same seed on the CPU."""

import io
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from iusp import models
from iusp.artifacts.records import Row
from iusp.config.base import TagSet
from iusp.config.training import Training
from iusp.data.taxonomy import Taxonomy, read_taxonomy
from iusp.errors import InputError
from iusp.evaluation.metrics import score, score_table
from iusp.evaluation.scoring import truth_table
from iusp.features.augmentation import View, augment, moved
from iusp.features.packed import FeatureSet, LabelledClips, labelled_clips, read_features
from iusp.io.files import atomic
from iusp.io.memory import keep_memory
from iusp.models.layers import Tagger
from iusp.training import distributed

# What a damaged checkpoint makes its readers raise.
DAMAGED = (
    *(BadZipFile, zlib.error, UnpicklingError, RuntimeError, EOFError),
    *(LookupError, ValueError, TypeError, AttributeError, OverflowError),
)


@dataclass(frozen=True)
class Batch:
    """Clips of one step.

    Attributes:
        log_mel: float32 (B, T, M).
        targets: float32 (B, K) in [0, 1].
        mask: bool (B, K).
        knowledge: what the teacher knows of these views, by name, float16 (B, …).
    """

    log_mel: Tensor
    targets: Tensor
    mask: Tensor
    knowledge: dict[str, Tensor] = field(default_factory=dict)


Losses = Callable[[Tensor, tuple[Tensor, ...], Batch], dict[str, Tensor]]


@dataclass(frozen=True)
class TrainingData:
    """What teacher and students are trained on, and judged by after each epoch.

    Attributes:
        taxonomy: of the data set.
        features: the packed features.
        clips: the training split.
        truth: bool (N, 8), coarse tags of validate.
    """

    taxonomy: Taxonomy
    features: FeatureSet
    clips: LabelledClips
    truth: NDArray[np.bool_]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Clips, frames and bands of the training split."""
        clips, frames, bands = self.clips.log_mel.shape
        return clips, frames, bands

    def validation_auprc(self, network: Tagger) -> float:
        """Return the coarse micro-averaged AUPRC of a network on validate; NaN of one that has diverged."""
        scores = predict(network, self.features.log_mel("validate"))
        if np.isnan(scores).any():
            return math.nan
        return score(
            self.truth, score_table(scores, self.clips.tags, self.taxonomy, "coarse"), self.taxonomy, "coarse"
        ).micro_auprc


def read_training_data(dataset: Path, features: Path, tags: TagSet) -> TrainingData:
    """Read what the dataset and the features step wrote.

    Args:
        dataset: folder that the dataset step wrote.
        features: folder that the features step wrote.
        tags: `coarse`, `fine` or `both`.

    Raises:
        InputError: they do not fit together, or there is no clip to validate on.
    """
    taxonomy = read_taxonomy(dataset / "taxonomy.yaml")
    feature_set = read_features(features)
    clips = labelled_clips(feature_set, dataset, "train", tags, taxonomy)
    if not feature_set.clips["validate"]:
        raise InputError(f"{dataset / 'labels.parquet'}: has no validate clip; the best epoch is chosen on them")
    return TrainingData(taxonomy, feature_set, clips, truth_table(dataset, feature_set, "validate", taxonomy, "coarse"))


def label_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return the binary cross-entropy, averaged over the tags (B, K), of all ranks, whose truth is known."""
    losses = binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return distributed.summed((losses * mask).sum()) / distributed.summed(mask.sum()).clamp_min(1)


def choose_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is the first accelerator there is, else the CPU.

    Several ranks on a machine take a GPU each.

    Raises:
        InputError: there is no such device.
    """
    if name == "auto":
        # Ranks cannot exchange what lies on mps.
        mps = torch.backends.mps.is_available() and distributed.ranks() == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if name == "cuda" and distributed.ranks() > 1:
        name = f"cuda:{torch.distributed.get_node_local_rank()}"
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError):
        raise InputError(f"training.device: there is no {name} on this machine; set auto or cpu") from None


def batches(
    data: TrainingData,
    view: View,
    order: NDArray[np.int64],
    batch_size: int,
    device: torch.device,
    knowledge: Mapping[str, NDArray[np.float16]],
) -> Iterator[Batch]:
    """Stream this rank's share of one epoch of a view's batches; an incomplete last batch is left out.

    Args:
        data: the training split (N clips).
        view: how they are augmented.
        order: permutation of the clips.
        batch_size: B, of all ranks together; all clips where there are fewer.
        device: where the batches go.
        knowledge: the teacher's, about this view, by name.
    """
    size = min(batch_size, len(order))
    fill = data.features.mean.to(device)
    for start in range(0, len(order) - size + 1, size):
        rows = np.array_split(order[start : start + size], distributed.ranks())[distributed.rank()]
        log_mel, targets, mask = augment(view, data.clips, rows, fill)
        known = {name: moved(array[rows], device) for name, array in knowledge.items()}
        yield Batch(log_mel, targets, mask, known)


def epoch_order(clips: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of the clips in an epoch: it depends on the seed and the epoch alone, not on the method."""
    return np.random.default_rng([seed, epoch]).permutation(clips)


def new_network(
    architecture: str, parameters: int, data: TrainingData, config: Training, seed: int
) -> tuple[Tagger, dict[str, Any]]:
    """Build a network of at most `parameters` parameters, initialised from `seed`, on its device.

    Returns:
        The network, which standardises its input by the features' statistics, and what its `config.json` must say.
    """
    tags, bands = data.clips.tags, data.features.config.mel_bands
    width = models.width_for(architecture, parameters, len(tags), bands)
    torch.manual_seed(seed)
    network = models.build(architecture, width, len(tags), bands)
    network.mean.copy_(data.features.mean)
    network.std.copy_(data.features.std)
    description = {
        "architecture": architecture,
        "width": width,
        "tags": tags,
        "features": data.features.config.model_dump(mode="json"),
        "features_digest": data.features.digest,
        "parameters": models.parameter_count(network),
        "seed": seed,
    }
    return network.to(choose_device(config.device)), description


def layer_channels(network: Tagger, data: TrainingData) -> list[int]:
    """Return the channels of each layer of a network, first to last."""
    with torch.inference_mode():
        training = network.training
        _, maps = network.eval()(torch.zeros(1, *data.shape[1:], device=network.device))
        network.train(training)
    return [layer.shape[1] for layer in maps]


def check_layers(what: str, layers: Iterable[int], count: int) -> None:
    """Check that a network of `count` layers has these, counted from the last, which is 1.

    Raises:
        InputError: it has not.
    """
    if too_many := [layer for layer in layers if layer > count]:
        raise InputError(f"{what}: there is no layer {too_many[0]}, only {count}, counted from the last")


@torch.inference_mode()
def predict(network: Tagger, log_mel: NDArray[np.float16], batch_size: int = 64) -> NDArray[np.float64]:
    """Return probabilities (N, K) of clips (N, T, M), in float32 arithmetic, batch by batch."""
    network.eval()
    scores = [
        network(torch.from_numpy(log_mel[start : start + batch_size].astype(np.float32)).to(network.device))[0]
        .sigmoid()
        .cpu()
        for start in range(0, len(log_mel), batch_size)
    ]
    return torch.cat(scores).numpy().astype(np.float64)


def _read_checkpoint(checkpoint: Path, device: torch.device) -> dict[str, Any] | None:
    """Load on every rank what the first finds; None where there is none."""
    there = distributed.rank() == 0 and checkpoint.exists()
    content = distributed.from_first(checkpoint.read_bytes() if there else None)
    if content is None:
        return None
    with _readable(checkpoint):
        # PyTorch writes checksums and does not look at them.
        with ZipFile(io.BytesIO(content)) as archive:
            if archive.testzip():
                raise BadZipFile
        return dict(torch.load(io.BytesIO(content), map_location=device, weights_only=True))


@contextmanager
def _readable(checkpoint: Path) -> Iterator[None]:
    """Turn what a damaged checkpoint makes its readers raise into one line.

    Raises:
        InputError: instead.
    """
    try:
        yield
    except DAMAGED:
        raise InputError(f"{checkpoint}: damaged; delete it, and training begins again") from None


@dataclass
class _State:
    """What a checkpoint holds besides the network, the optimiser and the schedule."""

    record: list[Row]
    best: dict[str, Tensor]
    best_epoch: int = 0
    best_score: float = -math.inf


def train(
    network: Tagger,
    description: dict[str, Any],
    data: TrainingData,
    epoch_batches: Callable[[int], Iterator[Batch]],
    losses: Losses,
    config: Training,
    folder: Path,
    on_epoch: Callable[[Row], None],
    auxiliary: nn.Module | None = None,
) -> dict[str, Any]:
    """Train until the epochs or the patience are over, and save the epoch that is best on validate.

    `folder` gets `weights.safetensors`, `config.json` and `record.csv`. A checkpoint is written into it after each
    epoch; where there is one, training goes on from it and ends where an undisturbed run ends. Where the training is
    finished, its network is loaded. Of several ranks the first alone reads and writes the folder, validates and tells
    of epochs.

    Args:
        network: to be trained, on its device.
        description: what `config.json` must say of it.
        data: to validate on.
        epoch_batches: the batches of an epoch (from 0).
        losses: named, weighted losses of logits, maps and a batch; their sum is minimised.
        config: of the optimisation.
        folder: to write into.
        on_epoch: told of each epoch's row, also of those that a checkpoint holds.
        auxiliary: what the losses train beside the network, on its device; it is not saved in the end.

    Returns:
        `description` with the epoch that was kept and its micro-averaged AUPRC on validate; on the first rank, also the
        weights' SHA-256.

    Raises:
        InputError: training diverges, or a batch has fewer clips than there are ranks.
    """
    device, first = network.device, distributed.rank() == 0
    keep_memory()
    _use_threads(config.threads)
    torch.use_deterministic_algorithms(device.type == "cpu")
    # Filling memory that is overwritten anyway costs time and changes nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    batch_size = min(config.batch_size, len(data.clips))
    if batch_size < distributed.ranks():
        raise InputError(f"{distributed.ranks()} processes cannot share batches of {batch_size} clips; start fewer")
    checkpoint, finished = folder / "checkpoint.pt", folder / "config.json"
    described = distributed.from_first(finished.read_bytes() if first and finished.exists() else None)
    if described is not None:
        if first:
            checkpoint.unlink(missing_ok=True)
            network.load_state_dict(models.load(folder)[0].state_dict())
        return dict(json.loads(described))
    beside = nn.Module() if auxiliary is None else auxiliary
    optimiser = torch.optim.AdamW(
        [*network.parameters(), *beside.parameters()], lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        config.learning_rate,
        epochs=config.epochs,
        steps_per_epoch=len(data.clips) // batch_size,
    )
    state = _State(record=[], best={})
    if (saved := _read_checkpoint(checkpoint, device)) is not None:
        with _readable(checkpoint):
            network.load_state_dict(saved["network"])
            beside.load_state_dict(saved["auxiliary"])
            optimiser.load_state_dict(saved["optimiser"])
            if saved["schedule"].keys() != schedule.state_dict().keys():  # PyTorch takes any
                raise KeyError("schedule")
            schedule.load_state_dict(saved["schedule"])
            state = _State(**saved["state"])
        for row in state.record if first else []:
            on_epoch(row)
    trained = distributed.shared(network)
    for epoch in range(len(state.record), config.epochs):
        if epoch - state.best_epoch > config.patience:
            break
        row = {"epoch": epoch + 1, "learning_rate": float(schedule.get_last_lr()[0])}
        row |= train_epoch(trained, epoch_batches(epoch), losses, optimiser, schedule, config.precision)
        auprc = torch.tensor(data.validation_auprc(network) if first else 0.0, dtype=torch.float64)
        row["validate_micro_auprc"] = float(distributed.summed(auprc))
        if not all(map(math.isfinite, row.values())):
            raise InputError(f"training diverged in epoch {epoch + 1}; lower training.learning_rate")
        state.record.append(row)
        if row["validate_micro_auprc"] > state.best_score:
            state.best = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
            state.best_epoch, state.best_score = epoch, row["validate_micro_auprc"]
        if not first:
            continue
        content = io.BytesIO()
        torch.save(
            {
                "network": network.state_dict(),
                "auxiliary": beside.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "state": vars(state),
            },
            content,
        )
        with atomic(checkpoint) as temporary:  # not by torch itself, which doesn't tell a full disk from a bug
            temporary.write_bytes(content.getbuffer())
        on_epoch(row)
    network.load_state_dict(state.best)
    description |= {"epoch": state.best_epoch + 1, "validate_micro_auprc": state.best_score}
    if first:
        with atomic(folder / "record.csv") as temporary:
            pd.DataFrame(state.record).to_csv(temporary, index=False)
        description = models.save(folder, network, description)
        checkpoint.unlink()
    return description


def _use_threads(threads: int) -> None:
    """Set PyTorch's CPU threads, with MKL's vector functions ready for them.

    MKL 2024 chooses a function's code at its first call; where several threads make it at once, one of them may get
    code of low accuracy for that call, and the bytes differ (https://github.com/pytorch/pytorch/issues/188792).
    """
    torch.set_num_threads(threads)
    for function in (torch.exp, torch.log, torch.sqrt, torch.tanh):
        function(torch.ones(1))


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
        network: to be trained, on its device.
        epoch_batches: on the same device.
        losses: named, weighted losses of logits, maps and a batch; their sum is minimised.
        optimiser: of the network, and of what the losses train beside it.
        schedule: of the learning rate; goes on by a step with each batch.
        precision: `float32`, or `bfloat16` for the network's own arithmetic.

    Returns:
        The mean over the batches of each loss, named `loss_<name>`.
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
