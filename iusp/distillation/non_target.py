r"""Emphasised non-target knowledge: KD that listens more to what a clip is not (Truong et al., ICASSP 2024).

.. math:: L = \tau^2 \cdot \frac{\sum_{n,k} w_{nk} \mathrm{BCE}(\sigma(z_{s,nk} / \tau), \sigma(z_{t,nk} / \tau))}
    {\sum_{n,k} w_{nk}}, \quad w_{nk} = 4 \text{ where } y_{nk} < 1/2 \text{ else } 1

After arXiv 2309.14838, which splits KD's divergence as DKD does (Zhao et al., CVPR 2022), into that of the target
against all others and that among the others, and weighs the second more. Tags exclude no other tag, so KD is a sum over
them already; the emphasis weighs the soft labels of the tags that a clip does not have.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

EMPHASIS = 4.0


def non_target_loss(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the weighted mean over clips and tags.

    Args:
        student: logits (B, K).
        teacher: logits (B, K).
        targets: labels (B, K), 0 to 1.
        temperature: τ > 0; τ² keeps the gradient's size.
    """
    weights = torch.where(targets < 0.5, EMPHASIS, 1.0)
    soft = (teacher.float() / temperature).sigmoid()
    losses = binary_cross_entropy_with_logits(student.float() / temperature, soft, weights / weights.mean())
    return temperature**2 * losses
