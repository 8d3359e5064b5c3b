r"""IUSP: similarities between the frames of one clip (Chang, Kao, Sun & Wang, Interspeech 2020, arXiv 2009.01759).

.. math:: \tilde G_n = Q_n Q_n^\top, \quad G_{n,i,:} = \tilde G_{n,i,:} / \lVert \tilde G_{n,i,:} \rVert_2, \quad
    L = \frac{1}{B T'^2} \sum_n \lVert G_{n,t} - G_{n,s} \rVert_F^2

Q_n has one row for each frame of clip n. The subscripts t and s mean teacher and student. The student learns which
frames of a clip are similar. This helps because many sounds repeat within a clip. The equation is reconstructed from
the abstract of the paper and from the equations of SP. It has not been checked against the full text of the paper.
"""

from torch import Tensor

from iusp.distillation.method import MethodLoss, Outputs
from iusp.distillation.similarity import row_normalised
from iusp.models.maps import frames, gram, pooled_frames, pooled_gram


def iusp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of frame similarities.

    Args:
        student: frames (B, T', D) of the student.
        teacher: Gram matrices (B, T'', T'') of the teacher's frames. A constant factor of a matrix has no effect. If
            T' and T'' differ, the longer sequence is averaged to the length of the shorter one.
    """
    count = min(student.shape[1], teacher.shape[1])
    student_gram, teacher_gram = gram(pooled_frames(student.float(), count)), pooled_gram(teacher.float(), count)
    return (row_normalised(teacher_gram) - row_normalised(student_gram)).square().mean()


class Loss(MethodLoss):
    """IUSP loss of a batch, averaged over layers."""

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of a batch, a scalar."""
        return self.mean_over_layers(
            lambda layer: iusp_loss(frames(outputs.maps[-layer]), outputs.knowledge[f"similarity-{layer}"])
        )
