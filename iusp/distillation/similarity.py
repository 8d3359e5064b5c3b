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
