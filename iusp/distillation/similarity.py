"""Similarity matrices, and bringing the frames of teacher and student to one rate: the only place that does."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d


def gram(features: Tensor) -> Tensor:
    """Return features · featuresᵀ (…, N, N) of features (…, N, D), in float32 also under autocast."""
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        return features @ features.transpose(-1, -2)


def row_normalised(matrix: Tensor) -> Tensor:
    """Divide each row (last dimension) by its L2 norm; an all-zero row stays zero."""
    norm = matrix.norm(dim=-1, keepdim=True)
    # Not x / max(norm, ε): its gradient at a zero row would be 1 / ε.
    return matrix / torch.where(norm > 0, norm, torch.inf)


def pooled_frames(frames: Tensor, count: int) -> Tensor:
    """Average frames (B, T', D) down to `count` ≤ T' frames (B, count, D)."""
    if frames.shape[1] == count:
        return frames
    return adaptive_avg_pool1d(frames.transpose(1, 2), count).transpose(1, 2)


def pooled_gram(matrix: Tensor, count: int) -> Tensor:
    """Return the Gram matrices (B, count, count) of averaged frames from those of all frames (B, T', T').

    Averaging is linear, P Q, so P Q (P Q)ᵀ = P (Q Qᵀ) Pᵀ: the frames themselves are not needed.
    """
    return pooled_frames(pooled_frames(matrix, count).transpose(1, 2), count)


def centred_gram(matrix: Tensor) -> Tensor:
    """Return the Gram matrices (…, T', T') of frames without their mean frame, H G H, from those of all frames.

    With H = I − 1/T' a projection, H G H is no further off than G (Frobenius norm): by at most 2⁻¹¹ ‖G‖ after storage
    in float16. Entries below 10⁻⁶ of the largest of G are float32's rounding and become zero, so that frames that are
    all the same do not end up as unit rows of noise.
    """
    matrix = matrix.float()
    rows = matrix.mean(dim=-1, keepdim=True)
    centred = matrix - rows - matrix.mean(dim=-2, keepdim=True) + rows.mean(dim=-2, keepdim=True)
    floor = 1e-6 * matrix.abs().amax(dim=(-2, -1), keepdim=True)
    return torch.where(centred.abs() > floor, centred, 0.0)
