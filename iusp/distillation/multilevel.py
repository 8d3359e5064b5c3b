r"""Multi-level logit distillation: matches single predictions, tags, and clips (Jin et al., CVPR 2023).

.. math:: L = L_{KD} + \frac{1}{K^2} \left\lVert \frac{P_t^\top P_t - P_s^\top P_s}{B} \right\rVert_F^2
    + \frac{1}{B^2} \left\lVert \frac{P_t P_t^\top - P_s P_s^\top}{K} \right\rVert_F^2, \quad P = \sigma(Z / \tau)

P has one row for each clip and one column for each tag. The first term is KD of each prediction (instance level). The
second term compares which tags are predicted together (class level). The third term compares which clips get similar
predictions (batch level).

The method differs from the paper in three ways. The paper uses a softmax and the divergence of its outputs; here, each
tag has its own sigmoid and cross-entropy, because tags do not exclude each other. The paper uses sums; here, means are
used, so that B and K do not change the balance of the terms. The paper uses several temperatures; here, there is only
one temperature τ.
"""

from torch import Tensor

from iusp.distillation.kd import kd_loss
from iusp.distillation.method import MethodLoss, Outputs
from iusp.models.maps import gram


def multilevel_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the sum of the three terms.

    Args:
        student: logits (B, K) of the student.
        teacher: logits (B, K) of the teacher.
        temperature: temperature τ > 0.
    """
    clips, tags = student.shape
    student_scores, teacher_scores = (
        (student.float() / temperature).sigmoid(),
        (teacher.float() / temperature).sigmoid(),
    )
    by_tag = ((gram(teacher_scores.T) - gram(student_scores.T)) / clips).square().mean()
    by_clip = ((gram(teacher_scores) - gram(student_scores)) / tags).square().mean()
    return kd_loss(student, teacher, temperature) + by_tag + by_clip


class Loss(MethodLoss):
    """Multi-level logit distillation loss of a batch."""

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of a batch, a scalar."""
        return multilevel_loss(outputs.logits, outputs.knowledge["logits"], self.temperature)
