r"""FitNet: the features of a middle layer as hints (Romero et al., ICLR 2015, equation 3).

.. math:: L = \frac{1}{2 B T' C} \sum_n \lVert Q_{n,t} - r(Q_{n,s}) \rVert_F^2

with one row of Q_n per frame of clip n, and a regressor r, trained with the student, from its channels to the
teacher's. The paper's hints are whole maps; averaged over bands, they can be stored, and the networks may differ there.
"""

from torch import Tensor

from iusp.distillation.similarity import pooled_frames


def hints(maps: Tensor) -> Tensor:
    """Average a layer's maps (B, C, T, F) over the bands: float32 frames (B, T, C)."""
    return maps.float().mean(dim=3).transpose(1, 2)


def fitnet_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half the mean squared difference of frames.

    Args:
        student: frames (B, T', C), after the regressor.
        teacher: frames (B, T'', C); where T' and T'' differ, the finer are averaged to the coarser.
    """
    count = min(student.shape[1], teacher.shape[1])
    return (pooled_frames(teacher.float(), count) - pooled_frames(student.float(), count)).square().mean() / 2
