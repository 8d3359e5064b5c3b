"""The layout of a network's maps (B, C, T', F'): channels, frames, bands."""

from torch import Tensor


def frames(maps: Tensor) -> Tensor:
    """Return frames (B, T', C·F'), time first."""
    batch, _, time, _ = maps.shape
    # view() on (B, C, T', F') would scramble time and channels: permute first.
    return maps.permute(0, 2, 1, 3).reshape(batch, time, -1)


def pooled(maps: Tensor) -> Tensor:
    """Return one vector (B, C) for each clip: of the bands' means, the mean over time plus the maximum.

    Mean for sounds that go on, maximum for short ones (Kong et al. 2020, PANNs, section III).
    """
    energy = maps.mean(dim=3)
    return energy.mean(dim=2) + energy.amax(dim=2)
