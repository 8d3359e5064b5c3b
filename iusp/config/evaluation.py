"""`evaluation` of params.yaml."""

from typing import Annotated

from pydantic import Field

from iusp.config.base import Count, Section, Seed


class Evaluation(Section):
    """Intervals, cost and pictures."""

    resamples: Annotated[int, Field(ge=10)]
    """Bootstrap resamples of the clips."""
    seed: Seed
    """Seed of the bootstrap."""
    latency_runs: Count
    """Timed runs per network; the median is reported."""
    pictured_clips: Annotated[int, Field(ge=0)]
    """Clips whose frame similarities are drawn."""
    calibration_clips: Count
    """Training clips that tell int8 the range of every activation."""
    license: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+() -]*$")]
    """Of the exported students' weights, an SPDX expression; the recordings' terms may ask for another."""
