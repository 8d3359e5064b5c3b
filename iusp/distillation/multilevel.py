r"""Multi-level logit distillation: clips, tags and the batch as a whole (Jin et al., CVPR 2023).

.. math:: L = L_{KD} + \frac{1}{K^2} \left\lVert \frac{P_t^\top P_t - P_s^\top P_s}{B} \right\rVert_F^2
    + \frac{1}{B^2} \left\lVert \frac{P_t P_t^\top - P_s P_s^\top}{K} \right\rVert_F^2, \quad P = \sigma(Z / \tau)

with one row of P per clip: KD of each prediction (instance level), which tags are predicted together (class level), and
which clips get like predictions (batch level). The multi-label form: where classes exclude each other the paper has the
softmax and its divergence, here each tag has its own sigmoid and cross-entropy. Means instead of the paper's sums, so
that B and K do not shift the balance; one τ instead of several.
"""

from torch import Tensor

from iusp.distillation.kd import kd_loss
from iusp.distillation.similarity import gram


def multilevel_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the sum of the three levels.

    Args:
        student: logits (B, K).
        teacher: logits (B, K).
        temperature: τ > 0.
    """
    clips, tags = student.shape
    own, others = (student.float() / temperature).sigmoid(), (teacher.float() / temperature).sigmoid()
    by_tag = ((gram(others.T) - gram(own.T)) / clips).square().mean()
    by_clip = ((gram(others) - gram(own)) / tags).square().mean()
    return kd_loss(student, teacher, temperature) + by_tag + by_clip
