"""A VGGish-style CNN (Hershey et al. 2017) without its fully connected layers."""

from torch import Tensor, nn

from iusp.models.layers import Tagger, after_each, convolution


class VGGish(Tagger):
    """Six 3×3 convolutions with `width` to 8·`width` channels (64 to 512 in the original), and four 2×2 max-pools."""

    WIDTHS = range(4, 257, 4)

    def __init__(self, width: int, tags: int, bands: int) -> None:
        super().__init__(tags, bands, embedding=8 * width)
        self.layers = nn.Sequential()
        inputs = 1
        for factors in ((1,), (2,), (4, 4), (8, 8)):
            layer: list[nn.Module] = []
            for factor in factors:
                layer += [*convolution(inputs, factor * width), nn.ReLU()]
                inputs = factor * width
            self.layers.append(nn.Sequential(*layer, nn.MaxPool2d(2, ceil_mode=True)))

    def maps(self, spectrogram: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of four layers for a spectrogram (B, 1, T, M); the last are (B, C, T/16, M/16)."""
        return after_each(self.layers, spectrogram)
