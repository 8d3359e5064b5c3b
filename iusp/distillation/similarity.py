"""Normalised similarity matrices."""

import torch
from torch import Tensor


def row_normalised(matrix: Tensor) -> Tensor:
    """Divide each row (last dimension) by its L2 norm; an all-zero row stays zero."""
    norm = matrix.norm(dim=-1, keepdim=True)
    # Not x / max(norm, ε): the gradient of that at a zero row would be 1 / ε.
    return matrix / torch.where(norm > 0, norm, torch.inf)


def centred_gram(matrix: Tensor) -> Tensor:
    """Return the Gram matrices of frames without their mean frame, H G H with H = I − 1/T'.

    H is a projection, so that storage in float16 costs H G H no more than G: at most 2⁻¹¹ ‖G‖ (Frobenius norm). Entries
    below 10⁻⁶ of the largest entry of G are rounding errors of float32. They become zero, so that frames that are all
    the same do not end up as unit rows of noise.

    Args:
        matrix: Gram matrices (…, T', T') of all frames.
    """
    matrix = matrix.float()
    rows = matrix.mean(dim=-1, keepdim=True)
    centred = matrix - rows - matrix.mean(dim=-2, keepdim=True) + rows.mean(dim=-2, keepdim=True)
    floor = 1e-6 * matrix.abs().amax(dim=(-2, -1), keepdim=True)
    return torch.where(centred.abs() > floor, centred, 0.0)
