"""A residual CNN (He et al. 2016), the default teacher."""

from torch import Tensor, nn

from iusp.models.layers import Tagger, after_each, convolution


class Block(nn.Module):
    """Two 3×3 convolutions beside a 1×1 shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.body = nn.Sequential(*convolution(inputs, outputs, stride), nn.ReLU(), *convolution(outputs, outputs))
        self.shortcut = nn.Sequential(*convolution(inputs, outputs, stride, kernel=1))
        self.activation = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Return feature maps (B, outputs, T / stride, F / stride) for maps (B, inputs, T, F)."""
        changed: Tensor = self.activation(self.body(maps) + self.shortcut(maps))
        return changed


class Residual(Tagger):
    """Four residual blocks with 1, 2, 4 and 8 times `width` channels.

    The output has 1/8 of the frames and 1/16 of the bands of the input.
    """

    WIDTHS = range(8, 257, 8)

    def __init__(self, width: int, tags: int, bands: int) -> None:
        super().__init__(tags, bands, embedding=8 * width)
        channels = (1, width, 2 * width, 4 * width, 8 * width)
        strides = ((2, 2), (2, 2), (2, 2), (1, 2))
        self.layers = nn.Sequential(*(Block(*shape) for shape in zip(channels, channels[1:], strides, strict=False)))

    def maps(self, spectrogram: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of four layers for a spectrogram (B, 1, T, M); the last are (B, C, T/8, M/16)."""
        return after_each(self.layers, spectrogram)
