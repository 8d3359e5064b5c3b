r"""Inter-KD: labels and soft labels for auxiliary heads on the middle layers (Yoon et al., SLT 2022, arXiv 2211.15075).

.. math:: L = \frac{1}{H} \sum_h \mathrm{BCE}(\sigma(z_h), y)
    + \tau^2 \cdot \mathrm{BCE}(\sigma(z_h / \tau), \sigma(z_t / \tau))

z_h are the logits of head h, y are the labels, and z_t are the logits of the teacher. In the paper, the heads are CTC
layers of a speech recogniser. Here, the heads are tagging heads. They are trained together with the student and removed
after training.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from iusp.distillation.kd import kd_loss
from iusp.distillation.method import MethodLoss, Outputs, Subject
from iusp.models.maps import pooled


def inter_loss(student: Sequence[Tensor], targets: Tensor, mask: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean loss over the heads.

    Args:
        student: logits (B, K) of each head of the student.
        targets: labels (B, K) in [0, 1].
        mask: bool (B, K), True where the label is known; other labels have no effect.
        teacher: logits (B, K) of the teacher.
        temperature: τ > 0 of the soft labels.
    """
    known_labels = mask.sum().clamp_min(1)
    losses = [
        binary_cross_entropy_with_logits(logits.float(), targets, mask.float(), reduction="sum") / known_labels
        + kd_loss(logits, teacher, temperature)
        for logits in student
    ]
    return torch.stack(losses).mean()


class Loss(MethodLoss):
    """Inter-KD loss of a batch, with an auxiliary head on each layer."""

    def __init__(self, subject: Subject, layers: Sequence[int], temperature: float) -> None:
        super().__init__(subject, layers, temperature)
        self.heads = nn.ModuleDict(
            {str(layer): nn.Linear(subject.channels[-layer], len(subject.tags)) for layer in layers}
        )

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of a batch, a scalar."""
        logits = [self.heads[str(layer)](pooled(outputs.maps[-layer]).float()) for layer in self.layers]
        return inter_loss(logits, outputs.targets, outputs.mask, outputs.knowledge["logits"], self.temperature)
