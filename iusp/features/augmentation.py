"""Augmented views of the training clips, drawn from a seed so that every process can make the same view again.

A view changes every clip of the training split once. Only the number of a view must be stored: the teacher stores its
knowledge of view v, and a student makes the same view v again from the clips and trains on it.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iusp.config.augmentation import Augmentation
from iusp.features.packed import LabelledClips


@dataclass(frozen=True)
class View:
    """The changes of each of N clips.

    Attributes:
        partner: int (N,), index of the clip that is mixed in.
        share: float32 (N,) in [0.5, 1], the clip's own share of the power; 1 if nothing is mixed in.
        shift: int (N,), number of frames to roll by.
        gain: float32 (N,), value to add to the log-mel (natural logarithm of power).
        time_masks: int (N, masks, 2), first frame and length of each mask.
        band_masks: int (N, masks, 2), first band and width of each mask.
    """

    partner: NDArray[np.int64]
    share: NDArray[np.float32]
    shift: NDArray[np.int64]
    gain: NDArray[np.float32]
    time_masks: NDArray[np.int64]
    band_masks: NDArray[np.int64]


def draw_view(
    config: Augmentation, seed: int, purpose: Literal["training", "knowledge"], number: int, shape: tuple[int, int, int]
) -> View:
    """Draw a view.

    Args:
        config: how strongly to change the clips.
        seed: seed of all views.
        purpose: purpose of the view. Views of the two purposes differ, so the teacher is not trained on the views
            about which it stores knowledge.
        number: number of the view.
        shape: number of clips N, frames T and bands M.
    """
    clips, frames, bands = shape
    random = np.random.default_rng([seed, ("training", "knowledge").index(purpose), number])
    share = np.where(random.random(clips) < config.mixup, random.uniform(0.5, 1.0, clips), 1.0)
    gain = random.uniform(-1, 1, clips) * config.gain_db * np.log(10) / 10
    return View(
        partner=random.integers(clips, size=clips),
        share=share.astype(np.float32),
        shift=random.integers(frames, size=clips) if config.roll else np.zeros(clips, np.int64),
        gain=gain.astype(np.float32),
        time_masks=_masks(random, (clips, config.time_masks), frames, config.time_mask_frames),
        band_masks=_masks(random, (clips, config.band_masks), bands, config.band_mask_bands),
    )


def _masks(random: np.random.Generator, shape: tuple[int, int], size: int, longest: int) -> NDArray[np.int64]:
    length = random.integers(min(longest, size) + 1, size=shape)
    return np.stack([random.integers(size - length + 1), length], axis=-1)


def moved(array: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """Copy an array to a device."""
    tensor = torch.as_tensor(array)
    # From pinned memory, a GPU copies the next batch while it computes the present one.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def augment(view: View, clips: LabelledClips, rows: NDArray[np.int64], fill: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a batch of a view.

    Args:
        view: the changes of each clip.
        clips: the training split.
        rows: int (B,), indices of the clips of the batch.
        fill: float32 (M,), values of masked cells: the means of the bands. The batch is computed on its device.

    Returns:
        log-mel float32 (B, T, M); targets float32 (B, K), mixed like the clips (Zhang et al. 2018); mask bool (B, K).
    """
    to_device = partial(moved, device=fill.device)
    frames, bands = clips.log_mel.shape[1:]
    source = (np.arange(frames) - view.shift[rows, None]) % frames
    # The clips are rolled while they are read, and copied in float16, which halves the bytes.
    log_mel = to_device(clips.log_mel[rows[:, None], source]).float()
    targets, mask = clips.targets[rows], clips.mask[rows]
    mixed = np.flatnonzero(view.share[rows] < 1)
    if len(mixed):
        partner = view.partner[rows[mixed]]
        own = torch.from_numpy(view.share[rows[mixed]])[:, None]
        share, where = to_device(own)[:, :, None], to_device(mixed)
        # Powers are added, as in the air.
        other = to_device(clips.log_mel[partner[:, None], source[mixed]]).float()
        power = share * log_mel[where].exp_() + (1 - share) * other.exp_()
        log_mel[where] = power.log_()
        targets = targets.index_copy(
            0, torch.from_numpy(mixed), own * targets[mixed] + (1 - own) * clips.targets[partner]
        )
        mask = mask.index_copy(0, torch.from_numpy(mixed), mask[mixed] & clips.mask[partner])
    log_mel += to_device(view.gain[rows])[:, None, None]
    if view.time_masks.size or view.band_masks.size:
        covered = _covered(to_device(view.time_masks[rows]), frames)[:, :, None]
        covered = covered | _covered(to_device(view.band_masks[rows]), bands)[:, None, :]
        log_mel = torch.where(covered, fill, log_mel)
    return log_mel, to_device(targets), to_device(mask)


def _covered(masks: Tensor, size: int) -> Tensor:
    """Return bool (B, size): which positions lie in one of the masks (B, n, 2)."""
    start, length = masks.unbind(dim=-1)
    position = torch.arange(size, device=masks.device)[None, None]
    return ((position >= start[..., None]) & (position < (start + length)[..., None])).any(dim=1)
