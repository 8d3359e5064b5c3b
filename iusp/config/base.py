"""Base of all sections of params.yaml: strict models and bounded numbers."""

import re
from math import inf
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

NAME = re.compile(r"[a-z][a-z0-9_]*")


STEPS = ("dataset", "features", "teacher", "student", "evaluation", "registration")


TagSet = Literal["coarse", "fine", "both"]


Architecture = Literal["residual", "vggish", "mobilenetv2", "plain", "separable", "cnn_lstm"]


class Section(BaseModel):
    """A section of `params.yaml`: immutable, with strict types; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


# YAML 1.1 reads 1e-6 (no dot) as text, and people write whole numbers where a fraction is allowed.
def _number(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", value):
        return float(value)
    try:
        return float(value) if type(value) is int else value
    except OverflowError:
        return inf  # no field allows infinity


# The validator comes last, so it runs first and the JSON Schema keeps the bounds.
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_number)]


NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_number)]


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), BeforeValidator(_number)]


Count = Annotated[int, Field(ge=1)]


Layers = Annotated[list[Count], Field(min_length=1)]
"""Layers of a network, counted from the last layer, which is 1."""


Seed = Annotated[int, Field(ge=0, lt=2**32)]


Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]


# Keys of earlier versions, and where their settings are now.
RENAMED = {"student": "distillation", "evaluation.license": "dataset.license"}


def _problems(error: ValidationError) -> str:
    """Describe every wrong key by its path."""
    return "; ".join(map(_problem, error.errors(include_input=False, include_url=False)))


def _problem(detail: ErrorDetails) -> str:
    path = ".".join(map(str, detail["loc"]))
    if detail["type"] != "extra_forbidden":
        return f"{path or 'top level'}: {detail['msg'].removeprefix('Value error, ')}"
    return f"{path}: no such key" + (f"; it is called {RENAMED[path]} now" if path in RENAMED else "")
