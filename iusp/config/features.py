"""`features` of params.yaml: the log-mel front-end."""

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from iusp.config.base import Count, NonNegative, Positive, Section, _number


class Features(Section):
    """The log-mel front-end."""

    sample_rate: Annotated[int, Field(ge=4000, le=192_000, multiple_of=50)]
    """Sample rate in Hz of the front-end; recordings of other rates are resampled to it."""
    clip_seconds: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False), BeforeValidator(_number)]
    """Length in seconds; clips are zero-padded or cut to it."""
    window_length: Annotated[int, Field(ge=16, multiple_of=2)]
    """Number of samples of the Hann window and of the FFT; even."""
    hop_length: Count
    """Number of samples between the starts of two frames."""
    mel_bands: Annotated[int, Field(ge=8, le=512)]
    """Number of mel bands."""
    low_hz: NonNegative
    """Lower edge of the lowest band in Hz."""
    high_hz: Positive
    """Upper edge of the highest band in Hz; at most half the sample rate."""
    log_offset: Annotated[float, Field(ge=1e-20, allow_inf_nan=False), BeforeValidator(_number)]
    """Value added to the mel power before the logarithm."""
    clips_per_shard: Count
    """Number of clips that one worker writes at once; a killed step loses at most one shard per worker."""

    @model_validator(mode="after")
    def _limits(self) -> "Features":
        samples = self.clip_seconds * self.sample_rate
        if max(self.window_length, self.hop_length) > samples:
            raise ValueError(f"window_length and hop_length must not exceed a clip's {samples:g} samples")
        if not self.low_hz < self.high_hz <= self.sample_rate / 2:
            raise ValueError(
                f"low_hz {self.low_hz:g} < high_hz {self.high_hz:g} <= half of sample_rate {self.sample_rate} must hold"
            )
        return self
