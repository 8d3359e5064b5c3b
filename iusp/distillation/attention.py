r"""Attention transfer: where in time and frequency a layer is active (Zagoruyko & Komodakis, ICLR 2017).

.. math:: A_{t,f} = \sum_c a_{c,t,f}^2, \quad
    L = \frac{1}{B T F} \sum_n \left\lVert \frac{A_{n,t}}{\lVert A_{n,t} \rVert_2}
    - \frac{A_{n,s}}{\lVert A_{n,s} \rVert_2} \right\rVert_2^2

with the maps a of one layer. The paper's activation-based form with p = 2; the mean instead of the sum is that of its
authors' code.
"""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from iusp.distillation.similarity import row_normalised


def attention_map(maps: Tensor) -> Tensor:
    """Return the attention (B, T, F) of a layer's maps (B, C, T, F), in 0 to 1; a silent clip's is zero.

    It is divided by the clip's largest entry, so that float16 can hold it: the loss does not see the factor.
    """
    energy = maps.float().square().sum(dim=1)
    peak = energy.amax(dim=(1, 2), keepdim=True)
    return energy / torch.where(peak > 0, peak, torch.inf)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the attention.

    Args:
        student: maps (B, C, T, F).
        teacher: attention (B, T', F'), up to a factor per clip; along each axis the finer is averaged to the coarser.
    """
    size = min(student.shape[2], teacher.shape[1]), min(student.shape[3], teacher.shape[2])
    own, others = (
        row_normalised(adaptive_avg_pool2d(attention, size).flatten(1))
        for attention in (attention_map(student), teacher.float())
    )
    return (others - own).square().mean()
