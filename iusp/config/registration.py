"""`registration` of params.yaml: MLflow, and the gate of promotion."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from iusp.config.base import Count, NonNegative, Positive, Section, Share, _number

DeviceFile = Literal["net_float32.onnx", "net_int8.onnx", "float32.onnx", "int8.onnx"]
"""Of what a version has for devices: the net alone, or from waveform to probabilities; in float32 or int8."""


class Floors(Section):
    """Coarse AUPRC on the evaluated split that the champion must reach."""

    micro_auprc: Share
    """Micro average."""
    macro_auprc: Share
    """Macro average; it depends a little on the processor that evaluated (docs/promotion.md)."""
    classes: dict[str, Share]
    """AUPRC by coarse tag, of the classes that a release cares about."""


class Budgets(Section):
    """What the champion may cost."""

    parameters: Count
    """Of the network."""
    macs: Count
    """Multiply-accumulates of one clip, without the front-end."""
    bytes: dict[DeviceFile, Count]
    """Size by file for devices."""
    latency_ms: dict[DeviceFile, Positive]
    """Median time of one clip on one thread, by file for devices."""


class Regression(Section):
    """How much worse than today's champion the next one may be, on the same clips (micro AUPRC, paired bootstrap)."""

    probability_worse: Share
    """Largest acceptable probability of being worse."""
    difference_low: Annotated[float, Field(ge=-1, le=0), BeforeValidator(_number)]
    """The lower end of the difference's 95 % interval must not lie below."""


class Parity(Section):
    """How far the files for devices may be from the network."""

    max_difference: Positive
    """Largest difference of a probability, of the float32 files."""
    auprc_loss: NonNegative
    """Largest loss of micro AUPRC, of the int8 files."""


class Gate(Section):
    """What a version must pass to become the champion."""

    floors: Floors
    """How good it must be."""
    budgets: Budgets
    """What it may cost."""
    regression: Regression
    """Against today's champion."""
    parity: Parity
    """Between network and files for devices."""


class Registration(Section):
    """Names in MLflow, and what becomes the champion."""

    experiment: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Experiment that holds the runs."""
    model_name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Registered model of which every student becomes a version; `<model_name>.promotions` keeps the history."""
    outage: Literal["keep", "fail"]
    """While MLflow fails, training goes on, and the registration step delivers what is missing (`keep`); or the step
    fails at once, and goes on from its last epoch when it is run again (`fail`). Registration itself always fails."""
    auto_promote: bool
    """The registration step promotes the challenger if the gate lets it; otherwise `iusp promote` is a person's act."""
    gate: Gate
    """Thresholds of promotion."""
