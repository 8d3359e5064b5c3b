"""MobileNetV2 (Sandler et al. 2018) for spectrograms."""

from torch import Tensor, nn

from iusp.models.layers import Tagger, after_each, convolution

# Expansion, channels, number of blocks, and stride of the first block. The values are those of table 2 in the paper,
# except the strides, which keep 1/8 of the frames and 1/16 of the bands. The paper's strides keep 1/32 of both, which
# would leave 8 frames of a 10-second clip.
STAGES = (
    (1, 16, 1, (1, 1)),
    (6, 24, 2, (2, 2)),
    (6, 32, 3, (2, 2)),
    (6, 64, 4, (1, 2)),
    (6, 96, 3, (1, 1)),
    (6, 160, 3, (1, 1)),
    (6, 320, 1, (1, 1)),
)
LAST_CHANNELS = 1280


class InvertedResidual(nn.Module):
    """A 1×1 expansion, a 3×3 depthwise filter and a 1×1 projection; the input is added if the shapes match."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int], expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [*convolution(inputs, hidden, kernel=1), nn.ReLU6()] if expansion > 1 else []
        self.body = nn.Sequential(
            *expand,
            *convolution(hidden, hidden, stride, groups=hidden),
            nn.ReLU6(),
            *convolution(hidden, outputs, kernel=1),
        )
        self.residual = stride == (1, 1) and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        """Return feature maps (B, outputs, T / stride, F / stride) for maps (B, inputs, T, F)."""
        changed: Tensor = self.body(maps)
        return maps + changed if self.residual else changed


class MobileNetV2(Tagger):
    """MobileNetV2 whose `width` is the paper's width multiplier in percent."""

    WIDTHS = range(5, 305, 5)

    def __init__(self, width: int, tags: int, bands: int) -> None:
        def scaled(channels: int) -> int:
            # Multiples of 8, at least 8, as in the authors' code.
            return max(8, (channels * width // 100 + 4) // 8 * 8)

        super().__init__(tags, bands, embedding=scaled(LAST_CHANNELS))
        inputs = scaled(32)
        self.layers = nn.Sequential(nn.Sequential(*convolution(1, inputs, (2, 2)), nn.ReLU6()))
        for expansion, channels, blocks, stride in STAGES:
            stage = nn.Sequential()
            for block in range(blocks):
                stage.append(InvertedResidual(inputs, scaled(channels), stride if block == 0 else (1, 1), expansion))
                inputs = scaled(channels)
            self.layers.append(stage)
        self.layers.append(nn.Sequential(*convolution(inputs, scaled(LAST_CHANNELS), kernel=1), nn.ReLU6()))

    def maps(self, spectrogram: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of each layer for a spectrogram (B, 1, T, M)."""
        return after_each(self.layers, spectrogram)
