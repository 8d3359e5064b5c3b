r"""KD: the teacher's probabilities as soft labels (Hinton et al. 2015), for tags that exclude no other tag.

.. math:: L = \tau^2 \cdot \mathrm{BCE}(\sigma(z_s / \tau), \sigma(z_t / \tau))
"""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean over clips and tags.

    Args:
        student: logits (B, K).
        teacher: logits (B, K).
        temperature: τ > 0; τ² keeps the gradient's size.
    """
    soft = (teacher.float() / temperature).sigmoid()
    return temperature**2 * binary_cross_entropy_with_logits(student.float() / temperature, soft)
