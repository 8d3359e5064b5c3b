r"""Emphasised non-target knowledge: KD with more weight on the tags a clip does not have (Truong et al., ICASSP 2024).

.. math:: L = \tau^2 \cdot \frac{\sum_{n,k} w_{nk} \mathrm{BCE}(\sigma(z_{s,nk} / \tau), \sigma(z_{t,nk} / \tau))}
    {\sum_{n,k} w_{nk}}, \quad w_{nk} = 4 \text{ where } y_{nk} < 1/2 \text{ else } 1

The paper is arXiv 2309.14838. Like DKD (Zhao et al., CVPR 2022), the paper splits the divergence of KD into two parts.
The first part compares the target class with all other classes. The second part compares the other classes with each
other, and it gets more weight. In this library, tags do not exclude each other, so the loss of KD is a sum over the
tags and needs no split. The soft labels of the tags that a clip does not have get more weight.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from iusp.distillation.method import MethodLoss, Outputs

EMPHASIS = 4.0


def non_target_loss(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the weighted mean loss over clips and tags.

    Args:
        student: logits (B, K) of the student.
        teacher: logits (B, K) of the teacher.
        targets: labels (B, K) in [0, 1].
        temperature: temperature τ > 0; the factor τ² keeps the scale of the gradient.
    """
    weights = torch.where(targets < 0.5, EMPHASIS, 1.0)
    soft = (teacher.float() / temperature).sigmoid()
    losses = binary_cross_entropy_with_logits(student.float() / temperature, soft, weights / weights.mean())
    return temperature**2 * losses


class Loss(MethodLoss):
    """Emphasised non-target KD loss of a batch."""

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of a batch, a scalar."""
        return non_target_loss(outputs.logits, outputs.knowledge["logits"], outputs.targets, self.temperature)
