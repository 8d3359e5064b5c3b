"""A plain CNN: four strided convolutions."""

from torch import Tensor, nn

from iusp.models.layers import Tagger, after_each, convolution


class Plain(Tagger):
    """Four layers of convolution, batch normalisation and ReLU.

    They have `width`, `width`, 2·`width` and 3·`width` channels. The output has 1/8 of the frames and 1/16 of the
    bands of the input.
    """

    WIDTHS = range(4, 513, 4)

    def __init__(self, width: int, tags: int, bands: int) -> None:
        super().__init__(tags, bands, embedding=3 * width)
        channels = (1, width, width, 2 * width, 3 * width)
        strides = ((2, 2), (2, 2), (2, 2), (1, 2))
        self.layers = nn.Sequential(
            *(
                nn.Sequential(*convolution(inputs, outputs, stride), nn.ReLU())
                for inputs, outputs, stride in zip(channels, channels[1:], strides, strict=False)
            )
        )

    def maps(self, spectrogram: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of four layers for a spectrogram (B, 1, T, M); the last are (B, C, T/8, M/16)."""
        return after_each(self.layers, spectrogram)
