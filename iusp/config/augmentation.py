"""`augmentation` of params.yaml: random changes of training clips."""

from typing import Annotated

from pydantic import Field

from iusp.config.base import NonNegative, Section, Share


class Augmentation(Section):
    """Random changes of one view of the training clips."""

    roll: bool
    """Whether to roll each clip in time by a random number of frames."""
    gain_db: NonNegative
    """Largest gain in dB; the gain is uniform between minus and plus this value."""
    mixup: Share
    """Share of clips that are mixed with another clip."""
    time_masks: Annotated[int, Field(ge=0)]
    """Number of SpecAugment time masks per clip."""
    time_mask_frames: Annotated[int, Field(ge=0)]
    """Largest length of a time mask in frames."""
    band_masks: Annotated[int, Field(ge=0)]
    """Number of SpecAugment frequency masks per clip."""
    band_mask_bands: Annotated[int, Field(ge=0)]
    """Largest width of a frequency mask in mel bands."""


class Augmentations(Section):
    """Random changes for teacher and students; a large network needs stronger changes than a small one."""

    teacher: Augmentation
    """Changes of the teacher's training clips, drawn again in each epoch."""
    views: Augmentation
    """Changes of the students' training clips; the teacher stores its knowledge of the same views."""
