r"""VIC-KD: clip embeddings kept alike, spread out and decorrelated (Guimarães et al., ICASSP 2024, arXiv 2309.12914).

.. math:: L = \frac{1}{B E} \lVert S - T \rVert_F^2 + \frac{1}{E} \sum_d \max(0, 1 - \sqrt{C_{dd} + \epsilon})
    + \frac{1}{25 E} \sum_{d \neq e} C_{de}^2, \quad C = \frac{1}{B - 1} (S - \bar S)^\top (S - \bar S)

with one row of S (student) and of T (teacher) per clip: invariance, variance, covariance. Terms, ε and relative weights
25 : 25 : 1 are those of VICReg (Bardes et al., ICLR 2022, equations 1 to 6), divided by 25. Of VIC-KD, rebuilt from its
abstract, only this prior on the student's embeddings is carried over: its teacher gets the same while it is trained,
ours is trained before and frozen; and its adversarial examples defend against attacks, which are not our subject.
"""

from torch import Tensor

from iusp.distillation.similarity import gram

COVARIANCE_WEIGHT = 1 / 25
EPSILON = 1e-4


def vic_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the sum of the three terms.

    Args:
        student: embeddings (B, E), after the projection to the teacher's E; a batch of one clip has no spread.
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
