r"""KD: the teacher's probabilities as soft labels (Hinton et al. 2015), for tags that do not exclude each other.

.. math:: L = \tau^2 \cdot \mathrm{BCE}(\sigma(z_s / \tau), \sigma(z_t / \tau))
"""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from iusp.distillation.method import MethodLoss, Outputs


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean loss over clips and tags.

    Args:
        student: logits (B, K) of the student.
        teacher: logits (B, K) of the teacher.
        temperature: temperature τ > 0; the factor τ² keeps the scale of the gradient.
    """
    soft = (teacher.float() / temperature).sigmoid()
    return temperature**2 * binary_cross_entropy_with_logits(student.float() / temperature, soft)


class Loss(MethodLoss):
    """KD loss of a batch."""

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of a batch, a scalar."""
        return kd_loss(outputs.logits, outputs.knowledge["logits"], self.temperature)
