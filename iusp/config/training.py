"""`training` of params.yaml, under `teacher` and under `distillation`: one optimisation."""

from typing import Annotated, Literal

from pydantic import Field

from iusp.config.base import Count, Device, NonNegative, Positive, Section


class Training(Section):
    """One optimisation: AdamW with a one-cycle learning rate."""

    epochs: Count
    """Passes over the training split."""
    batch_size: Annotated[int, Field(ge=2)]
    """Clips per step."""
    learning_rate: Positive
    """Peak of the one-cycle schedule."""
    weight_decay: NonNegative
    """AdamW's decoupled weight decay."""
    patience: Count
    """Stop after this many epochs without a better micro-averaged AUPRC on validate."""
    precision: Literal["float32", "bfloat16"]
    """Autocast precision; similarities stay in float32."""
    device: Device
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`."""
    threads: Annotated[int, Field(ge=1, le=256)]
    """CPU threads of one training. It changes the order of sums, and so the last bits of a result."""
