r"""IUSP: similarities between the frames of one clip (Chang, Kao, Sun & Wang, Interspeech 2020, arXiv 2009.01759).

.. math:: \tilde G_n = Q_n Q_n^\top, \quad G_{n,i,:} = \tilde G_{n,i,:} / \lVert \tilde G_{n,i,:} \rVert_2, \quad
    L = \frac{1}{B T'^2} \sum_n \lVert G_{n,t} - G_{n,s} \rVert_F^2

with one row of Q_n per frame of clip n. Rebuilt from the paper's abstract and SP's equations. Sounds repeat: which
frames of a clip are alike is worth teaching, whatever the features that say so.
"""

from torch import Tensor

from iusp.distillation.similarity import gram, pooled_frames, pooled_gram, row_normalised


def iusp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of frame similarities.

    Args:
        student: frames (B, T', D).
        teacher: Gram matrices (B, T'', T'') of the teacher's frames, each up to a factor; where T' and T'' differ, the
            finer is averaged to the coarser.
    """
    count = min(student.shape[1], teacher.shape[1])
    own, others = gram(pooled_frames(student.float(), count)), pooled_gram(teacher.float(), count)
    return (row_normalised(others) - row_normalised(own)).square().mean()
