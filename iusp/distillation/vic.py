r"""VIC-KD: invariance, variance and covariance of clip embeddings (Guimarães et al., ICASSP 2024, arXiv 2309.12914).

.. math:: L = \frac{1}{B E} \lVert U_t - U_s \rVert_F^2
    + \frac{1}{E} \sum_d \max(0, 1 - \sqrt{\Sigma_{dd} + \epsilon})
    + \frac{1}{25 E} \sum_{d \neq e} \Sigma_{de}^2, \quad
    \Sigma = \frac{1}{B - 1} (U_s - \bar U_s)^\top (U_s - \bar U_s)

U_s (student) and U_t (teacher) have one row for each clip and E columns. Each row is the embedding of a clip. Σ is the
covariance matrix of the student's embeddings. The first term keeps the student's embeddings similar to the teacher's
embeddings. The second term keeps them different from each other. The third term decorrelates their dimensions. The
terms, ε and the relative weights 25 : 25 : 1 come from VICReg (Bardes et al., ICLR 2022, equations 1 to 6). Here, the
weights are divided by 25.

The method is reconstructed from the abstract of the VIC-KD paper and differs from the paper in two ways. In the paper,
the teacher's embeddings are also trained with the variance and covariance terms. Here, the teacher is trained without
these terms, before the students, and then it does not change. The paper also trains on adversarial examples; this
method does not.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from iusp.distillation.method import MethodLoss, Outputs, Subject
from iusp.models.maps import gram, pooled

COVARIANCE_WEIGHT = 1 / 25
EPSILON = 1e-4


def vic_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the sum of the three terms.

    Args:
        student: embeddings (B, E) of the student, after the projection to the teacher's width E.
        teacher: embeddings (B, E) of the teacher.
    """
    clips, dimensions = student.shape
    student = student.float()
    invariance = (student - teacher.float()).square().mean()
    covariance = gram((student - student.mean(dim=0)).T) / max(clips - 1, 1)
    variances = covariance.diagonal()
    variance = (1 - (variances + EPSILON).sqrt()).relu().mean()
    correlation = (covariance - variances.diag()).square().sum() / dimensions
    return invariance + variance + COVARIANCE_WEIGHT * correlation


class Loss(MethodLoss):
    """VIC-KD loss of a batch, with a linear projection from the student's embeddings to the teacher's width."""

    def __init__(self, subject: Subject, layers: Sequence[int], temperature: float) -> None:
        super().__init__(subject, layers, temperature)
        self.projection = nn.Linear(subject.channels[-1], subject.knowledge("pooled").shape[-1])

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of a batch, a scalar."""
        return vic_loss(self.projection(pooled(outputs.maps[-1]).float()), outputs.knowledge["pooled"])
