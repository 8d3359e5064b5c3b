"""Section `registration` of params.yaml: names in MLflow, and the promotion gate."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from iusp.config.base import Count, NonNegative, Positive, Section, Share, _number

DeviceFile = Literal["net_float32.onnx", "net_int8.onnx", "float32.onnx", "int8.onnx"]
"""ONNX files of a version: `net_*` computes from log-mel, the others from the waveform; in float32 or int8."""


class Floors(Section):
    """Lowest AUPRC of the champion on the evaluated split, over coarse tags."""

    micro_auprc: Share
    """Lowest micro-averaged AUPRC."""
    macro_auprc: Share
    """Lowest macro-averaged AUPRC. Its last digits depend on the processor (docs/promotion.md)."""
    classes: dict[str, Share]
    """Lowest AUPRC of single coarse tags, such as `{1_engine: 0.5}`."""


class Budgets(Section):
    """Highest cost of the champion."""

    parameters: Count
    """Highest number of parameters."""
    macs: Count
    """Highest number of multiply-accumulates per clip, without the front-end."""
    bytes: dict[DeviceFile, Count]
    """Highest size of each ONNX file, in bytes."""
    latency_ms: dict[DeviceFile, Positive]
    """Highest median time per clip and thread of each ONNX file, in milliseconds."""


class Regression(Section):
    """How much worse than the current champion a version may be: micro AUPRC on the same clips, by paired bootstrap."""

    probability_worse: Share
    """Highest probability that the version is worse."""
    difference_low: Annotated[float, Field(ge=-1, le=0), BeforeValidator(_number)]
    """Lowest acceptable lower end of the 95 % interval of the difference in AUPRC; 0 or negative."""


class Parity(Section):
    """How much the ONNX files may differ from the network."""

    max_difference: Positive
    """Largest difference between a probability of a float32 file and of the network."""
    auprc_loss: NonNegative
    """Largest loss of micro AUPRC of an int8 file."""


class Gate(Section):
    """Conditions that a version must meet to become the champion."""

    floors: Floors
    """Lowest AUPRC."""
    budgets: Budgets
    """Highest cost."""
    regression: Regression
    """Comparison with the current champion."""
    parity: Parity
    """Comparison of the ONNX files with the network."""


class Registration(Section):
    """Names in MLflow, and the rules of promotion."""

    experiment: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Name of the MLflow experiment that holds the runs."""
    model_name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Name of the registered model; every student becomes a version. `<model_name>.promotions` keeps the history."""
    outage: Literal["keep", "fail"]
    """What a training step does while MLflow cannot be reached. `keep`: training continues, and the registration step
    logs what is missing. `fail`: the step stops, and continues from its last epoch when it is run again. The
    registration step always stops."""
    auto_promote: bool
    """Whether the registration step promotes a challenger that passes the gate. Otherwise, run `iusp promote`."""
    gate: Gate
    """Conditions for promotion."""
