"""`augmentation` of params.yaml: random changes of training clips."""

from typing import Annotated

from pydantic import Field

from iusp.config.base import NonNegative, Section, Share


class Augmentation(Section):
    """Random changes of a training view."""

    roll: bool
    """Roll the clip in time by a random number of frames."""
    gain_db: NonNegative
    """Gain uniform in ± this many decibels."""
    mixup: Share
    """Share of clips that are mixed with another one."""
    time_masks: Annotated[int, Field(ge=0)]
    """SpecAugment time masks per clip."""
    time_mask_frames: Annotated[int, Field(ge=0)]
    """Longest time mask."""
    band_masks: Annotated[int, Field(ge=0)]
    """SpecAugment frequency masks per clip."""
    band_mask_bands: Annotated[int, Field(ge=0)]
    """Widest frequency mask."""


class Augmentations(Section):
    """A large network needs more change than a small one can bear."""

    teacher: Augmentation
    """Of what the teacher is trained on, drawn anew in each epoch."""
    views: Augmentation
    """Of what students are trained on, and what the teacher's knowledge is about."""
