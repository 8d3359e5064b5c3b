"""A depthwise-separable CNN (Howard et al. 2017, MobileNets)."""

from torch import Tensor, nn

from iusp.models.layers import Tagger, after_each, convolution


class Separable(Tagger):
    """One convolution and three depthwise-separable convolutions; the last has 8·`width` channels."""

    WIDTHS = range(4, 513, 4)

    def __init__(self, width: int, tags: int, bands: int) -> None:
        super().__init__(tags, bands, embedding=8 * width)
        self.layers = nn.Sequential(nn.Sequential(*convolution(1, width, (2, 2)), nn.ReLU()))
        for stride in ((2, 2), (2, 2), (1, 2)):
            depthwise = [*convolution(width, width, stride, groups=width), nn.ReLU()]
            self.layers.append(nn.Sequential(*depthwise, *convolution(width, 2 * width, kernel=1), nn.ReLU()))
            width *= 2

    def maps(self, spectrogram: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of four layers for a spectrogram (B, 1, T, M); the last are (B, C, T/8, M/16)."""
        return after_each(self.layers, spectrogram)
