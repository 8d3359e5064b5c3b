r"""IUSP: similarities between the frames of one clip (Chang, Kao, Sun & Wang, Interspeech 2020, arXiv 2009.01759).

.. math:: \tilde G_n = Q_n Q_n^\top, \quad G_{n,i,:} = \tilde G_{n,i,:} / \lVert \tilde G_{n,i,:} \rVert_2, \quad
    L = \frac{1}{B T'^2} \sum_n \lVert G_{n,t} - G_{n,s} \rVert_F^2

with one row of Q_n per frame of clip n. Rebuilt from the paper's abstract and SP's equations. Sounds repeat: which
frames of a clip are alike is worth teaching, whatever the features that say so. Two variants go beyond the paper.
"""

import torch
from torch import Tensor

from iusp.distillation.similarity import centred_gram, gram, pooled_frames, pooled_gram, row_normalised


def iusp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of frame similarities.

    Args:
        student: frames (B, T', D).
        teacher: Gram matrices (B, T'', T'') of the teacher's frames, each up to a factor; where T' and T'' differ, the
            finer is averaged to the coarser.
    """
    own, others = _grams(student, teacher)
    return (row_normalised(others) - row_normalised(own)).square().mean()


def centred_iusp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return `iusp_loss` of frames without their clip's mean frame.

    Features behind a ReLU are never negative, so that all frames of a clip look alike; what changes in it stands out
    once the mean is gone.
    """
    own, others = _grams(student, teacher)
    return (row_normalised(centred_gram(others)) - row_normalised(centred_gram(own))).square().mean()


def scaled_iusp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of `iusp_loss` over three time scales: all frames, averaged to half as many, to a quarter."""
    count = min(student.shape[1], teacher.shape[1])
    scales = [max(count // divisor, 1) for divisor in (1, 2, 4)]
    return torch.stack([iusp_loss(pooled_frames(student.float(), scale), teacher) for scale in scales]).mean()


def _grams(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Gram matrices of the student's frames and of the teacher's, at the coarser of the two rates."""
    count = min(student.shape[1], teacher.shape[1])
    return gram(pooled_frames(student.float(), count)), pooled_gram(teacher.float(), count)
