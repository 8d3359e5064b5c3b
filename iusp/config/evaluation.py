"""Section `evaluation` of params.yaml."""

from typing import Annotated

from pydantic import Field

from iusp.config.base import Count, Section, Seed


class Evaluation(Section):
    """Confidence intervals, cost and plots."""

    resamples: Annotated[int, Field(ge=10)]
    """Number of bootstrap resamples of the clips."""
    seed: Seed
    """Seed of the bootstrap's random numbers."""
    latency_runs: Count
    """Number of timed runs per network; the median is reported."""
    pictured_clips: Annotated[int, Field(ge=0)]
    """Number of clips whose frame similarities are plotted."""
    calibration_clips: Count
    """Number of training clips from which int8 quantization takes the range of every activation."""
