"""`teacher.training` and `distillation.training` of params.yaml: an optimisation."""

from typing import Annotated, Literal

from pydantic import Field

from iusp.config.base import Count, Device, NonNegative, Positive, Section


class Training(Section):
    """An optimisation by AdamW with a one-cycle learning rate."""

    epochs: Count
    """Number of passes over the training split."""
    batch_size: Annotated[int, Field(ge=2)]
    """Number of clips per optimiser step, over all processes."""
    learning_rate: Positive
    """Peak of the one-cycle learning-rate schedule."""
    weight_decay: NonNegative
    """Decoupled weight decay of AdamW."""
    patience: Count
    """Number of epochs without a better micro-averaged AUPRC on validate after which training stops."""
    precision: Literal["float32", "bfloat16"]
    """Precision of the network's arithmetic (autocast); similarities are always computed in float32."""
    device: Device
    """`auto` (the first accelerator, or the CPU), `cpu`, `cuda`, `cuda:1` or `mps`."""
    threads: Annotated[int, Field(ge=1, le=256)]
    """Number of CPU threads of one training. It changes the order of sums, and so the last bits of a result."""
