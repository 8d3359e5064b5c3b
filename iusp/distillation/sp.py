r"""SP: similarities between the clips of a mini-batch (Tung & Mori, ICCV 2019, equations 1 to 4).

.. math:: \tilde G = Q Q^\top, \quad G_{i,:} = \tilde G_{i,:} / \lVert \tilde G_{i,:} \rVert_2, \quad
    L = \lVert G_t - G_s \rVert_F^2 / B^2

with one row of Q per clip: its frames, flattened.
"""

import torch
from torch import Tensor

from iusp.distillation.similarity import gram, row_normalised


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of similarities.

    Args:
        student: frames (B, T', D).
        teacher: clip embeddings (B, E), whose inner products are those of the teacher's flattened frames.
    """
    return (row_normalised(gram(student.flatten(1))) - row_normalised(gram(teacher))).square().mean()


def clip_embedding(frames: Tensor, dimensions: int) -> Tensor:
    """Hash flattened frames into a short vector that keeps inner products (Weinberger et al., ICML 2009).

    The frames of a clip have T'·D ≈ 16 000 numbers, too many to store for each view of 100 000 clips. Adding each, with
    a random sign, to a random one of `dimensions` places leaves inner products unbiased, with a standard deviation of
    about |x||y| / √dimensions.

    Args:
        frames: (B, T', D).
        dimensions: E.

    Returns:
        (B, E) float32. The hash depends on T'·D and E alone.
    """
    flat = frames.flatten(1).float()
    random = torch.Generator().manual_seed(0)
    place = torch.randint(dimensions, (flat.shape[1],), generator=random).to(flat.device)
    sign = (torch.randint(2, (flat.shape[1],), generator=random) * 2 - 1).to(flat)
    return flat.new_zeros(len(flat), dimensions).index_add_(1, place, flat * sign)
