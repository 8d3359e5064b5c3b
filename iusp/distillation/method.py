"""The inputs of every distillation method, and the base class of the losses."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from iusp.data.taxonomy import Taxonomy


@dataclass(frozen=True)
class Subject:
    """What a loss needs to know about the student and the teacher before training.

    Attributes:
        channels: number of channels of each layer of the student, first to last.
        tags: the K tags that the student and the teacher predict.
        taxonomy: categories of the tags.
        knowledge: function that takes the name of a stored array and returns this array (N, …) of the teacher's
            knowledge. The array describes one view of each of the N training clips. A view is a clip after one random
            augmentation.
    """

    channels: Sequence[int]
    tags: Sequence[str]
    taxonomy: Taxonomy
    knowledge: Callable[[str], NDArray[np.float16]]


@dataclass(frozen=True)
class Outputs:
    """Outputs of the student for one batch, and the teacher's knowledge of the same batch.

    Attributes:
        logits: logits of the student (B, K).
        maps: feature maps (B, C, T', F') of each layer of the student, first to last.
        targets: labels (B, K) in [0, 1].
        mask: bool (B, K), False where the label is unknown.
        knowledge: the teacher's knowledge of the same views of the same clips: for each name, an array (B, …), float32.
    """

    logits: Tensor
    maps: Sequence[Tensor]
    targets: Tensor
    mask: Tensor
    knowledge: Mapping[str, Tensor]


class MethodLoss(nn.Module, ABC):
    """The loss of one method for one student, and the auxiliary layers that are trained for the method.

    Args:
        subject: what the loss needs to know about the student and the teacher before training.
        layers: layers that the method uses, counted from the last, which is 1.
        temperature: temperature τ of the soft labels.
    """

    def __init__(self, subject: Subject, layers: Sequence[int], temperature: float) -> None:
        super().__init__()
        self.subject = subject
        self.layers = tuple(layers)
        self.temperature = temperature

    @abstractmethod
    def forward(self, outputs: Outputs) -> Tensor:
        """Return the unweighted loss of a batch, a scalar."""

    def mean_over_layers(self, loss: Callable[[int], Tensor]) -> Tensor:
        """Return the mean of a loss over the layers."""
        return torch.stack([loss(layer) for layer in self.layers]).mean()
