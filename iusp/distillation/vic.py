r"""VIC-KD: clip embeddings kept alike, spread out and decorrelated (Guimarães et al., ICASSP 2024, arXiv 2309.12914).

.. math:: L = \frac{1}{B E} \lVert S - T \rVert_F^2 + \frac{1}{E} \sum_d \max(0, 1 - \sqrt{C_{dd} + \epsilon})
    + \frac{1}{25 E} \sum_{d \neq e} C_{de}^2, \quad C = \frac{1}{B - 1} (S - \bar S)^\top (S - \bar S)

S (student) and T (teacher) have one row per clip. The terms are invariance, variance and covariance. Terms, ε and the
relative weights 25 : 25 : 1 are those of VICReg (Bardes et al., ICLR 2022, equations 1 to 6), divided by 25. This is
rebuilt from VIC-KD's abstract and differs from the paper in two ways. The paper's teacher is trained under the same
prior; ours is trained before and frozen. The paper also trains on adversarial examples; we do not.
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
        student: embeddings (B, E), after the projection to the teacher's width E.
        teacher: embeddings (B, E).
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
    """VIC-KD of a batch, with a projection from the student's pooled channels to the teacher's."""

    def __init__(self, subject: Subject, layers: Sequence[int], temperature: float) -> None:
        super().__init__(subject, layers, temperature)
        self.projection = nn.Linear(subject.channels[-1], subject.knowledge("pooled").shape[-1])

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss."""
        return vic_loss(self.projection(pooled(outputs.maps[-1]).float()), outputs.knowledge["pooled"])
