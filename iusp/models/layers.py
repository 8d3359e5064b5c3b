"""What the networks share: input standardisation, the tagging head, and the maps of every layer."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from iusp.models.maps import pooled


class Tagger(nn.Module, ABC):
    """A network that tags a clip; it knows nothing of how it is trained.

    Subclasses define `maps`. Called with log-mel (B, T, M) in natural-log power, it returns the logits (B, K) and the
    maps (B, C, T', F') of its layers, first to last; the logits are pooled from the last.
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
        """Where the network is."""
        return self.mean.device

    @abstractmethod
    def maps(self, spectrogram: Tensor) -> tuple[Tensor, ...]:
        """Turn a standardised spectrogram (B, 1, T, M) into the maps (B, C, T', F') of each layer."""

    def forward(self, log_mel: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits (B, K) and maps (B, C, T', F')."""
        maps = self.maps(((log_mel - self.mean) / self.std).unsqueeze(1))
        return self.head(pooled(maps[-1])), maps


class Probabilities(nn.Module):
    """A network that returns probabilities alone, as users of the registry expect."""

    def __init__(self, network: Tagger) -> None:
        super().__init__()
        self.network = network

    def forward(self, log_mel: Tensor) -> Tensor:
        """Turn log-mel (B, T, M) into probabilities (B, K)."""
        logits: Tensor = self.network(log_mel)[0]
        return logits.sigmoid()


def after_each(layers: Iterable[nn.Module], maps: Tensor) -> tuple[Tensor, ...]:
    """Apply layers one after the other and return what comes out of each."""
    outputs = []
    for layer in layers:
        maps = layer(maps)
        outputs.append(maps)
    return tuple(outputs)


def convolution(
    inputs: int, outputs: int, stride: tuple[int, int] = (1, 1), kernel: int = 3, groups: int = 1
) -> list[nn.Module]:
    """Return a convolution with "same" padding, without bias, and its batch normalisation."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
