r"""Inter-KD: labels and soft labels for auxiliary heads on the middle layers (Yoon et al., SLT 2022, arXiv 2211.15075).

.. math:: L = \frac{1}{H} \sum_h \mathrm{BCE}(\sigma(z_h), y)
    + \tau^2 \cdot \mathrm{BCE}(\sigma(z_h / \tau), \sigma(z_t / \tau))

with the logits z_h of head h. The paper's heads are CTC layers of a speech recogniser; a tagger's have its own losses.
The heads are trained with the student and then dropped.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from iusp.distillation.kd import kd_loss


def inter_loss(student: Sequence[Tensor], targets: Tensor, mask: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean over heads.

    Args:
        student: logits (B, K) of each head.
        targets: labels (B, K), 0 to 1.
        mask: bool (B, K), which labels are known; the others count for nothing.
        teacher: logits (B, K).
        temperature: τ > 0 of the soft labels.
    """
    known = mask.sum().clamp_min(1)
    losses = [
        binary_cross_entropy_with_logits(logits.float(), targets, mask.float(), reduction="sum") / known
        + kd_loss(logits, teacher, temperature)
        for logits in student
    ]
    return torch.stack(losses).mean()
