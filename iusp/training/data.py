"""The training clips in batches, and the validation of each epoch. A view is a clip after one random augmentation."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iusp.config.base import TagSet
from iusp.data.taxonomy import Taxonomy, read_taxonomy
from iusp.errors import InputError
from iusp.evaluation.metrics import score, score_table
from iusp.evaluation.scoring import truth_table
from iusp.features.augmentation import View, augment, moved
from iusp.features.packed import FeatureSet, LabelledClips, labelled_clips, read_features
from iusp.models.inference import predict
from iusp.models.layers import Tagger
from iusp.training import distributed


@dataclass(frozen=True)
class TrainingFolders:
    """The folders that every training run reads.

    Attributes:
        dataset: folder that the dataset step wrote.
        features: folder that the features step wrote.
    """

    dataset: Path
    features: Path

    @property
    def labels(self) -> Path:
        """The table of labels."""
        return self.dataset / "labels.parquet"


@dataclass(frozen=True)
class Batch:
    """The clips of one optimiser step.

    Attributes:
        log_mel: log-mel features, float32 (B, T, M).
        targets: labels, float32 (B, K) in [0, 1].
        mask: bool (B, K), True where the label is known.
        knowledge: the teacher's knowledge of the same views: for each name, an array (B, …), float16.
    """

    log_mel: Tensor
    targets: Tensor
    mask: Tensor
    knowledge: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingData:
    """The clips that the networks are trained on, and the clips on which each epoch is validated.

    Attributes:
        taxonomy: categories and tags of the data set.
        features: the packed features of all splits.
        clips: the clips of the training split, with their labels.
        truth: coarse tags of the validation clips (split `validate`), bool (N, tags).
    """

    taxonomy: Taxonomy
    features: FeatureSet
    clips: LabelledClips
    truth: NDArray[np.bool_]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of clips, frames and bands of the training split."""
        clips, frames, bands = self.clips.log_mel.shape
        return clips, frames, bands

    def validation_auprc(self, network: Tagger) -> float:
        """Return the micro-averaged AUPRC of the coarse tags on the validation clips; NaN if the network diverged."""
        scores = predict(network, self.features.log_mel("validate"))
        if np.isnan(scores).any():
            return math.nan
        return score(
            self.truth, score_table(scores, self.clips.tags, self.taxonomy, "coarse"), self.taxonomy, "coarse"
        ).micro_auprc


def read_training_data(folders: TrainingFolders, tags: TagSet) -> TrainingData:
    """Read what the dataset step and the features step wrote.

    Args:
        folders: folders of the two steps.
        tags: tags that the networks predict: `coarse`, `fine` or `both`.

    Raises:
        InputError: the two folders do not belong to the same clips, or there is no validation clip.
    """
    dataset = folders.dataset
    taxonomy = read_taxonomy(dataset / "taxonomy.yaml")
    feature_set = read_features(folders.features)
    clips = labelled_clips(feature_set, dataset, "train", tags, taxonomy)
    if not feature_set.clips["validate"]:
        raise InputError(f"{folders.labels}: there is no validate clip to choose the best epoch; add some")
    return TrainingData(taxonomy, feature_set, clips, truth_table(dataset, feature_set, "validate", taxonomy, "coarse"))


def batches(
    data: TrainingData,
    view: View,
    order: NDArray[np.int64],
    batch_size: int,
    device: torch.device,
    knowledge: Mapping[str, NDArray[np.float16]] = MappingProxyType({}),
) -> Iterator[Batch]:
    """Yield the batches of one epoch. If there are several processes, yield this process's part of each batch.

    An incomplete last batch is left out.

    Args:
        data: the N training clips.
        view: random numbers of the augmentation, which turn each clip into a view.
        order: permutation of the clips, (N,).
        batch_size: number of clips per optimiser step, over all processes. If there are fewer clips, the only batch
            contains all clips.
        device: device that the batches are moved to.
        knowledge: the teacher's knowledge of the views: for each name, an array (N, …).
    """
    size = min(batch_size, len(order))
    fill = data.features.mean.to(device)
    for start in range(0, len(order) - size + 1, size):
        rows = np.array_split(order[start : start + size], distributed.ranks())[distributed.rank()]
        log_mel, targets, mask = augment(view, data.clips, rows, fill)
        taught = {name: moved(array[rows], device) for name, array in knowledge.items()}
        yield Batch(log_mel, targets, mask, taught)


def epoch_order(clips: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order (N,) of the clips in an epoch, which depends only on their number, the seed and the epoch."""
    return np.random.default_rng([seed, epoch]).permutation(clips)
