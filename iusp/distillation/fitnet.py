r"""FitNet: the features of a middle layer as hints (Romero et al., ICLR 2015, equation 3).

.. math:: L = \frac{1}{2 B T' C} \sum_n \lVert Q_{n,t} - r(Q_{n,s}) \rVert_F^2

Q_n has one row for each frame of clip n. The subscripts t and s mean teacher and student. The regressor r maps the
channels of the student to the C channels of the teacher. It is trained together with the student. In the paper, the
hints are whole feature maps. Here, the hints are averaged over the bands. This makes them small enough to store, and
the two networks may have different numbers of bands.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from iusp.distillation.method import MethodLoss, Outputs, Subject
from iusp.models.maps import band_means, pooled_frames


def fitnet_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half the mean squared difference of frames.

    Args:
        student: frames (B, T', C) of the student, after the regressor.
        teacher: frames (B, T'', C) of the teacher. If T' and T'' differ, the longer sequence is averaged to the length
            of the shorter one.
    """
    count = min(student.shape[1], teacher.shape[1])
    return (pooled_frames(teacher.float(), count) - pooled_frames(student.float(), count)).square().mean() / 2


class Loss(MethodLoss):
    """FitNet loss of a batch, averaged over layers, with one regressor for each layer."""

    def __init__(self, subject: Subject, layers: Sequence[int], temperature: float) -> None:
        super().__init__(subject, layers, temperature)
        self.regressors = nn.ModuleDict(
            {
                str(layer): nn.Linear(subject.channels[-layer], subject.knowledge(f"hints-{layer}").shape[-1])
                for layer in layers
            }
        )

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of a batch, a scalar."""

        def loss(layer: int) -> Tensor:
            hints = band_means(outputs.maps[-layer])
            return fitnet_loss(self.regressors[str(layer)](hints), outputs.knowledge[f"hints-{layer}"])

        return self.mean_over_layers(loss)
