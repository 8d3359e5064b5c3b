"""Normalised similarity matrices."""

import torch
from torch import Tensor


def row_normalised(matrix: Tensor) -> Tensor:
    """Divide each row (last dimension) by its L2 norm; an all-zero row stays zero."""
    norm = matrix.norm(dim=-1, keepdim=True)
    # x / max(norm, ε) is not used, because its gradient at a zero row would be 1 / ε.
    return matrix / torch.where(norm > 0, norm, torch.inf)


def centred_gram(matrix: Tensor) -> Tensor:
    """Return the Gram matrices of frames after their mean frame is subtracted: H G H with H = I − 1/T'.

    H is a projection, so the float16 rounding error of H G H is at most that of G, which is 2⁻¹¹ ‖G‖ (Frobenius norm).
    Entries below 10⁻⁶ of the largest entry of G are rounding errors of float32. They are set to zero, because identical
    frames would otherwise give rows of noise that are normalised to 1.

    Args:
        matrix: Gram matrices (…, T', T') of all frames.
    """
    matrix = matrix.float()
    rows = matrix.mean(dim=-1, keepdim=True)
    centred = matrix - rows - matrix.mean(dim=-2, keepdim=True) + rows.mean(dim=-2, keepdim=True)
    floor = 1e-6 * matrix.abs().amax(dim=(-2, -1), keepdim=True)
    return torch.where(centred.abs() > floor, centred, 0.0)
