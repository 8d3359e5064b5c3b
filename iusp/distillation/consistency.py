r"""Consistency: a coarse tag should be as probable as the most probable of its fine tags.

.. math:: L = \frac{1}{B J} \sum_n \sum_{k \in \mathcal J} \left(p_{n,k} - \max_{f \in \mathcal F_k} p_{n,f}\right)^2,
    \quad p = \sigma(z)

𝒥 is the set of the J coarse tags, and ℱ_k is the set of the fine tags of coarse tag k. The loss needs no teacher,
because the taxonomy says which tags belong together. It follows the idea of I²KD that predictions at different levels
should agree. The text of I²KD was not available. If the kind of a sound is unknown, the labels have a coarse tag and no
fine tag. For such clips, this loss contradicts the labels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from iusp.distillation.method import MethodLoss, Outputs, Subject
from iusp.errors import InputError


def consistency_loss(logits: Tensor, coarse: Sequence[int], fine: Sequence[Sequence[int]]) -> Tensor:
    """Return the mean squared difference over clips and categories. Both terms of the difference have gradients.

    Args:
        logits: logits (B, K) of the student.
        coarse: for each category, the index of the logit of its coarse tag.
        fine: for each category, the indices of the logits of its fine tags; each category has at least one fine tag.
    """
    p = logits.float().sigmoid()
    highest = torch.stack([p[:, list(columns)].amax(dim=1) for columns in fine], dim=1)
    return (p[:, list(coarse)] - highest).square().mean()


class Loss(MethodLoss):
    """Consistency loss of a batch, over the categories whose coarse tag and fine tags are all predicted."""

    def __init__(self, subject: Subject, layers: Sequence[int], temperature: float) -> None:
        super().__init__(subject, layers, temperature)
        columns = {tag: column for column, tag in enumerate(subject.tags)}
        taxonomy = subject.taxonomy
        categories = [
            category
            for category, tag in taxonomy.coarse.items()
            if tag in columns and set() < set(taxonomy.fine[category]) <= set(columns)
        ]
        if not categories:
            raise InputError("consistency: no category has fine tags, which this method needs; choose another method")
        self._coarse = [columns[taxonomy.coarse[category]] for category in categories]
        self._fine = [[columns[tag] for tag in taxonomy.fine[category]] for category in categories]

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of a batch, a scalar."""
        return consistency_loss(outputs.logits, self._coarse, self._fine)
