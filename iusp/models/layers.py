"""What the networks share: input standardisation, the tagging head, and the layout of frames."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn


class Tagger(nn.Module, ABC):
    """A network that tags a clip; it knows nothing of how it is trained.

    Subclasses define `maps`. Called with log-mel (B, T, M) in natural-log power, it returns the logits (B, K) and the
    frames (B, T', D) that it pools them from, time first.
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
    def maps(self, spectrogram: Tensor) -> Tensor:
        """Turn a standardised spectrogram (B, 1, T, M) into maps (B, C, T', F')."""

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and frames (B, T', C·F')."""
        maps = self.maps(((log_mel - self.mean) / self.std).unsqueeze(1))
        batch, _, time, _ = maps.shape
        # view() on (B, C, T', F') would scramble time and channels: permute first.
        frames = maps.permute(0, 2, 1, 3).reshape(batch, time, -1)
        # Mean for sounds that go on, maximum for short ones (Kong et al. 2020, PANNs, section III).
        energy = maps.mean(dim=3)
        return self.head(energy.mean(dim=2) + energy.amax(dim=2)), frames


def convolution(
    inputs: int, outputs: int, stride: tuple[int, int] = (1, 1), kernel: int = 3, groups: int = 1
) -> list[nn.Module]:
    """Return a convolution with "same" padding, without bias, and its batch normalisation."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
