"""The parts that all networks share: standardised input, the tagging head, and the feature maps of every layer."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from iusp.models.maps import pooled


class Tagger(nn.Module, ABC):
    """A network that tags clips, independent of how it is trained.

    The input is log-mel features (B, T, M), the natural logarithm of power. The output is the logits (B, K) and the
    feature maps (B, C, T', F') of the layers, first to last. The logits come from the pooled maps of the last layer.
    Subclasses define `maps`.
    """

    WIDTHS: ClassVar[range]
    mean: Tensor
    std: Tensor

    def __init__(self, tags: int, bands: int, embedding: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(bands))
        self.register_buffer("std", torch.ones(bands))
        self.head = nn.Linear(embedding, tags)

    @property
    def device(self) -> torch.device:
        """Device that holds the network."""
        return self.mean.device

    @abstractmethod
    def maps(self, spectrogram: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps (B, C, T', F') of each layer for a standardised spectrogram (B, 1, T, M)."""

    def forward(self, log_mel: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits (B, K) and the feature maps (B, C, T', F') of each layer."""
        maps = self.maps(((log_mel - self.mean) / self.std).unsqueeze(1))
        return self.head(pooled(maps[-1])), maps


class Probabilities(nn.Module):
    """A network that returns only probabilities, which is the output of exported models."""

    def __init__(self, network: Tagger) -> None:
        super().__init__()
        self.network = network

    def forward(self, log_mel: Tensor) -> Tensor:
        """Return the probabilities (B, K) for log-mel features (B, T, M)."""
        logits: Tensor = self.network(log_mel)[0]
        return logits.sigmoid()


def after_each(layers: Iterable[nn.Module], maps: Tensor) -> tuple[Tensor, ...]:
    """Apply layers one after the other and return the output of each."""
    outputs = []
    for layer in layers:
        maps = layer(maps)
        outputs.append(maps)
    return tuple(outputs)


def convolution(
    inputs: int, outputs: int, stride: tuple[int, int] = (1, 1), kernel: int = 3, groups: int = 1
) -> list[nn.Module]:
    """Return a convolution with "same" padding and without bias, and its batch normalisation."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
