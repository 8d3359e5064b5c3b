"""Summaries of a network's feature maps (B, C, T', F'), where C are channels, T' frames and F' bands.

The teacher stores some of the summaries for its students. The losses compute the same summaries of the student's maps.
"""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d


def frames(maps: Tensor) -> Tensor:
    """Return the frames (B, T', C·F') of feature maps (B, C, T', F')."""
    batch, _, time, _ = maps.shape
    # view() on (B, C, T', F') would scramble time and channels: permute first.
    return maps.permute(0, 2, 1, 3).reshape(batch, time, -1)


def pooled(maps: Tensor) -> Tensor:
    """Return one vector (B, C) per clip: the mean over the bands, then its mean over time plus its maximum.

    The mean suits long sounds, the maximum short sounds (Kong et al. 2020, PANNs, section III).
    """
    energy = maps.mean(dim=3)
    return energy.mean(dim=2) + energy.amax(dim=2)


def band_means(maps: Tensor) -> Tensor:
    """Average feature maps (B, C, T, F) over the bands; return float32 frames (B, T, C)."""
    return maps.float().mean(dim=3).transpose(1, 2)


def attention_map(maps: Tensor) -> Tensor:
    """Return the sum of squares over channels, which shows where in time and frequency a layer is active.

    Args:
        maps: feature maps (B, C, T, F).

    Returns:
        Attention (B, T, F) in [0, 1], divided by the largest entry of each clip so that float16 can hold it; zero for
        a clip whose maps are all zero.
    """
    energy = maps.float().square().sum(dim=1)
    peak = energy.amax(dim=(1, 2), keepdim=True)
    return energy / torch.where(peak > 0, peak, torch.inf)


def gram(features: Tensor) -> Tensor:
    """Return the Gram matrices (…, N, N) of features (…, N, D), in float32 even under autocast."""
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        return features @ features.transpose(-1, -2)


def pooled_frames(frames: Tensor, count: int) -> Tensor:
    """Average frames (B, T', D) down to `count` ≤ T' frames (B, count, D)."""
    if frames.shape[1] == count:
        return frames
    return adaptive_avg_pool1d(frames.transpose(1, 2), count).transpose(1, 2)


def pooled_gram(matrix: Tensor, count: int) -> Tensor:
    """Return the Gram matrices (B, count, count) of averaged frames, computed from those of all frames (B, T', T').

    Averaging multiplies the frames Q by a matrix P, and P Q (P Q)ᵀ = P (Q Qᵀ) Pᵀ. So the frames are not needed.
    """
    return pooled_frames(pooled_frames(matrix, count).transpose(1, 2), count)


def clip_embedding(frames: Tensor, dimensions: int) -> Tensor:
    """Hash flattened frames into a short vector that keeps inner products (Weinberger et al., ICML 2009).

    The frames of a clip have T'·D ≈ 16,000 numbers, too many to store for each view of 100,000 clips. The hash adds
    each number, with a random sign, to one of `dimensions` random places. Inner products stay unbiased, with a standard
    deviation of about |x||y| / √dimensions.

    Args:
        frames: frames of each clip, (B, T', D).
        dimensions: length E of the vector.

    Returns:
        The vectors, float32 (B, E). The hash depends only on T'·D and E.
    """
    flat = frames.flatten(1).float()
    random = torch.Generator().manual_seed(0)
    place = torch.randint(dimensions, (flat.shape[1],), generator=random).to(flat.device)
    sign = (torch.randint(2, (flat.shape[1],), generator=random) * 2 - 1).to(flat)
    return flat.new_zeros(len(flat), dimensions).index_add_(1, place, flat * sign)
