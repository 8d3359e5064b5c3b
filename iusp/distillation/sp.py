r"""SP: similarities between the clips of a mini-batch (Tung & Mori, ICCV 2019, equations 1 to 4).

.. math:: \tilde G = Q Q^\top, \quad G_{i,:} = \tilde G_{i,:} / \lVert \tilde G_{i,:} \rVert_2, \quad
    L = \lVert G_t - G_s \rVert_F^2 / B^2

Q has one row for each clip, which contains the flattened frames of the clip. The subscripts t and s mean teacher and
student. For the teacher, a short hash of each row is stored (`iusp.models.maps.clip_embedding`).
"""

from torch import Tensor

from iusp.distillation.method import MethodLoss, Outputs
from iusp.distillation.similarity import row_normalised
from iusp.models.maps import frames, gram


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of similarities.

    Args:
        student: frames (B, T', D) of the student.
        teacher: clip embeddings (B, E) of the teacher. Their inner products approximate the inner products of the
            teacher's flattened frames.
    """
    return (row_normalised(gram(student.flatten(1))) - row_normalised(gram(teacher))).square().mean()


class Loss(MethodLoss):
    """SP loss of a batch, averaged over layers."""

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of a batch, a scalar."""
        return self.mean_over_layers(
            lambda layer: sp_loss(frames(outputs.maps[-layer]), outputs.knowledge[f"embedding-{layer}"])
        )
