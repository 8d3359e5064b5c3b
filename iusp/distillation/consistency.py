r"""Consistency: a coarse tag is as probable as the most probable of its fine tags (after I²KD).

.. math:: L = \frac{1}{B C} \sum_n \sum_c \left(p_{n,c} - \max_{f \in F_c} p_{n,f}\right)^2, \quad p = \sigma(z)

with the fine tags F_c of category c. Needs no teacher: the taxonomy is the knowledge. Of I²KD, whose text was not at
hand, only the idea is carried over, that predictions of different levels should agree. Where a sound's kind is unknown,
the labels have a coarse tag and no fine one: the loss then pulls against them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def consistency_loss(logits: Tensor, coarse: Sequence[int], fine: Sequence[Sequence[int]]) -> Tensor:
    """Return the mean over clips and categories; both sides of the difference are trained.

    Args:
        logits: (B, K).
        coarse: column of each category's coarse tag.
        fine: columns of each category's fine tags, at least one.
    """
    p = logits.float().sigmoid()
    most = torch.stack([p[:, list(columns)].amax(dim=1) for columns in fine], dim=1)
    return (p[:, list(coarse)] - most).square().mean()
