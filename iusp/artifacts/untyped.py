"""Untyped readers that the typed artifacts replace; nothing new may use them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from iusp.errors import InputError
from iusp.io.files import read_json

_Share = Annotated[float, Field(ge=0, le=1)]
BySeed = Annotated[dict[str, _Share], Field(min_length=1)]


class Digested(BaseModel):
    """What a summary says it is of."""

    digest: str


class _Auprc(BaseModel):
    micro_auprc: _Share
    micro_auprc_low: _Share
    micro_auprc_high: _Share
    macro_auprc: _Share
    macro_auprc_low: _Share
    macro_auprc_high: _Share


class _Network(BaseModel):
    architecture: str
    parameters: int
    macs: int
    bytes: int
    coarse: _Auprc


class _Teacher(_Network):
    sha256: str


class _Student(_Network):
    method: str
    weights: dict[str, float]
    validate_micro_auprc: BySeed
    best_seed: int
    seeds: BySeed
    seeds_mean: float
    seeds_std: float


class _Metrics(BaseModel):
    split: str
    clips: int
    teacher: _Teacher
    students: Annotated[dict[str, _Student], Field(min_length=1)]


class _Percentiles(BaseModel):
    p50: Annotated[float, Field(ge=0)]


class _Runtime(BaseModel):
    network: _Percentiles


class _Runtimes(BaseModel):
    torch: _Runtime


Latencies = dict[str, _Runtimes]
"""`latency.json`."""


class Registration(BaseModel):
    """What the registration step wrote."""

    versions: dict[str, int]
    challenger: str


def read_metrics(evaluation: Path) -> dict[str, Any]:
    """Read `metrics.json` in a folder that the evaluation step wrote.

    Raises:
        InputError: it is missing or damaged.
    """
    path = evaluation / "metrics.json"
    metrics: dict[str, Any] = read_json(path, form=_Metrics)
    for name, student in metrics["students"].items():
        best = str(student["best_seed"])
        if not student["seeds"].keys() == student["validate_micro_auprc"].keys() >= {best}:
            raise InputError(f"{path}: students.{name} has other seeds than it was trained with; run evaluation again")
    return metrics


def best_student(students: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of the student with the best seed by micro-averaged AUPRC on validate.

    Args:
        students: by name, with `validate_micro_auprc` by seed, as in `metrics.json`.
    """
    return max(students, key=lambda name: max(students[name]["validate_micro_auprc"].values()))
