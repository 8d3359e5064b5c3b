r"""Attention transfer: maps of where in time and frequency a layer is active (Zagoruyko & Komodakis, ICLR 2017).

.. math:: A_n[i, j] = \sum_d a_n[d, i, j]^2, \quad
    L = \frac{1}{B T' F'} \sum_n \left\lVert \frac{A_{n,t}}{\lVert A_{n,t} \rVert_2}
    - \frac{A_{n,s}}{\lVert A_{n,s} \rVert_2} \right\rVert_2^2

a_n is the feature map of one layer for clip n. Its indices are the channel d, the frame i and the band j. The
subscripts t and s mean teacher and student. B is the number of clips, T' the number of frames and F' the number of
bands. This is the paper's activation-based form with p = 2. As in the authors' code, the squared differences are
averaged. The paper sums them.
"""

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from iusp.distillation.method import MethodLoss, Outputs
from iusp.distillation.similarity import row_normalised
from iusp.models.maps import attention_map


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the normalised attention maps.

    Args:
        student: feature maps (B, C, T', F') of the student.
        teacher: attention maps (B, T'', F'') of the teacher. A constant factor for each clip has no effect. If the two
            networks have different numbers of frames or bands, the larger map is averaged to the size of the smaller.
    """
    size = min(student.shape[2], teacher.shape[1]), min(student.shape[3], teacher.shape[2])
    student_map, teacher_map = (
        row_normalised(adaptive_avg_pool2d(attention, size).flatten(1))
        for attention in (attention_map(student), teacher.float())
    )
    return (teacher_map - student_map).square().mean()


class Loss(MethodLoss):
    """Attention transfer of a batch, averaged over layers."""

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of a batch, a scalar."""
        return self.mean_over_layers(
            lambda layer: attention_loss(outputs.maps[-layer], outputs.knowledge[f"attention-{layer}"])
        )
