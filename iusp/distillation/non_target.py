r"""Emphasised non-target knowledge: KD with more weight on the tags a clip does not have (Truong et al., ICASSP 2024).

.. math:: L = \tau^2 \cdot \frac{\sum_{n,k} w_{nk} \mathrm{BCE}(\sigma(z_{s,nk} / \tau), \sigma(z_{t,nk} / \tau))}
    {\sum_{n,k} w_{nk}}, \quad w_{nk} = 4 \text{ where } y_{nk} < 1/2 \text{ else } 1

After arXiv 2309.14838. Like DKD (Zhao et al., CVPR 2022), the paper splits KD's divergence into two parts, that of the
target class against all others and that among the others, and gives the second part more weight. Tags do not exclude
each other, so KD is a sum over them already; here the soft labels of the tags that a clip does not have get more
weight.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from iusp.distillation.method import MethodLoss, Outputs

EMPHASIS = 4.0


def non_target_loss(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the weighted mean over clips and tags.

    Args:
        student: logits (B, K).
        teacher: logits (B, K).
        targets: labels (B, K), 0 to 1.
        temperature: τ > 0; the factor τ² keeps the size of the gradient.
    """
    weights = torch.where(targets < 0.5, EMPHASIS, 1.0)
    soft = (teacher.float() / temperature).sigmoid()
    losses = binary_cross_entropy_with_logits(student.float() / temperature, soft, weights / weights.mean())
    return temperature**2 * losses


class Loss(MethodLoss):
    """Emphasised non-target KD of a batch."""

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss."""
        return non_target_loss(outputs.logits, outputs.knowledge["logits"], outputs.targets, self.temperature)
