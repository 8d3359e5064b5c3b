r"""Consistency: a coarse tag is as probable as the most probable of its fine tags (after I²KD).

.. math:: L = \frac{1}{B C} \sum_n \sum_c \left(p_{n,c} - \max_{f \in F_c} p_{n,f}\right)^2, \quad p = \sigma(z)

where F_c are the fine tags of category c. It needs no teacher: the taxonomy is the knowledge. I²KD's text was not
available; only its idea is used: predictions at different levels should agree. If the kind of a sound is unknown, the
labels have a coarse tag and no fine tag, and this loss contradicts the labels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from iusp.distillation.method import MethodLoss, Outputs, Subject


def consistency_loss(logits: Tensor, coarse: Sequence[int], fine: Sequence[Sequence[int]]) -> Tensor:
    """Return the mean over clips and categories; gradients flow through both terms of the difference.

    Args:
        logits: logits (B, K) of the student.
        coarse: index of the column of the coarse tag, for each category.
        fine: indices of the columns of the fine tags, at least one, for each category.
    """
    p = logits.float().sigmoid()
    highest = torch.stack([p[:, list(columns)].amax(dim=1) for columns in fine], dim=1)
    return (p[:, list(coarse)] - highest).square().mean()


class Loss(MethodLoss):
    """Consistency loss of a batch, over the categories with both coarse and fine predictions."""

    def __init__(self, subject: Subject, layers: Sequence[int], temperature: float) -> None:
        super().__init__(subject, layers, temperature)
        columns = {tag: column for column, tag in enumerate(subject.tags)}
        taxonomy = subject.taxonomy
        categories = [
            category
            for category, tag in taxonomy.coarse.items()
            if tag in columns and set(taxonomy.fine[category]) <= set(columns)
        ]
        self._coarse = [columns[taxonomy.coarse[category]] for category in categories]
        self._fine = [[columns[tag] for tag in taxonomy.fine[category]] for category in categories]

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of a batch, a scalar."""
        return consistency_loss(outputs.logits, self._coarse, self._fine)
