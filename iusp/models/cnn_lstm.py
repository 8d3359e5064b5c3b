"""One convolution and one LSTM: the family of the students in the IUSP paper."""

import torch
from torch import Tensor, nn

from iusp.models.layers import Tagger
from iusp.models.maps import frames


class CnnLstm(Tagger):
    """A convolution of `width` channels over 16 frames × 8 bands, and an LSTM of 4·`width` units on its frames."""

    WIDTHS = range(1, 129)

    def __init__(self, width: int, tags: int, bands: int) -> None:
        super().__init__(tags, bands, embedding=4 * width)
        self.convolution = nn.Sequential(
            nn.Conv2d(1, width, (16, 8), stride=(8, 4), padding=(8, 2), bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.lstm = nn.LSTM(width * (bands // 4), 4 * width, batch_first=True)

    def maps(self, spectrogram: Tensor) -> tuple[Tensor, ...]:
        """Return feature maps (B, C, T/8, M/4) and (B, 4·C, T/8, 1) for a spectrogram (B, 1, T, M)."""
        maps = self.convolution(spectrogram)
        return maps, torch.transpose(self.lstm(frames(maps))[0], 1, 2).unsqueeze(3)
