"""Timing of alternatives that take turns on one core.

Times are CPU seconds of the process. On one thread they equal wall time on an idle machine, and other processes disturb
them least. Ratios are those of medians.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch.profiler import ProfilerActivity, profile

from iusp.config.params import Config, load
from iusp.io.memory import keep_memory
from iusp.reporter import Reporter
from iusp.steps import dataset, features
from iusp.training.data import TrainingData, TrainingFolders, read_training_data

ROOT = Path(__file__).parents[2]
WORK = ROOT / "data" / "performance"
Times = dict[str, list[float]]


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        what: what is measured, and what it is compared with.
        value: ratio, seconds or share.
        low: smallest value of a single turn.
        high: largest value of a single turn.
        unit: unit after the numbers, such as ×.
        target: lower limit of `value`, or upper limit if `at_most`; None if there is none.
        at_most: whether the target is an upper limit.
    """

    what: str
    value: float
    low: float
    high: float
    unit: str = "×"
    target: float | None = None
    at_most: bool = False


@dataclass
class Report:
    """What a script found: rows of the table, notes, and tables of profiles by caption (the first row is the head)."""

    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    profiles: dict[str, list[list[str]]] = field(default_factory=dict)

    def print(self) -> None:
        """Print it as one line of JSON."""
        print(json.dumps(asdict(self)))


def one_thread() -> None:
    """Pin this process to one core and torch to one thread; freed memory is kept, as in training."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    threadpool_limits(1)  # of NumPy's and SciPy's BLAS, whose idle threads spin
    keep_memory()


def interleaved(jobs: Mapping[str, Callable[[], object]], rounds: int) -> Times:
    """Run all jobs in turn: once to warm up, then `rounds` times. Return the CPU seconds by name."""
    times: Times = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            times[name].append(time.process_time() - start)
    return {name: values[1:] for name, values in times.items()}


def ratio(what: str, over: list[float], under: list[float], target: float | None = None, **more: Any) -> Figure:
    """Return the ratio of the medians, with the smallest and the largest ratio of a single turn."""
    pairs = [a / b for a, b in zip(over, under, strict=True)]
    return Figure(
        what, statistics.median(over) / statistics.median(under), min(pairs), max(pairs), target=target, **more
    )


def milliseconds(seconds: list[float]) -> str:
    """Return the median as text; see `duration`."""
    return duration(statistics.median(seconds))


def duration(seconds: float) -> str:
    """Return a time with three digits, in milliseconds below one second and in seconds from one second on."""
    value, unit = (seconds, "s") if seconds >= 1 else (seconds * 1000, "ms")
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def operators(job: Callable[[], object], rows: int = 8) -> list[list[str]]:
    """Profile a job with torch's profiler; return its costliest operators, their share of the CPU time and calls."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        job()
    averages = [one for one in profiler.key_averages() if not one.key.startswith("ProfilerStep")]
    total = sum(one.self_cpu_time_total for one in averages)
    top = sorted(averages, key=lambda one: one.self_cpu_time_total, reverse=True)[:rows]
    return [["operator", "share of CPU time", "calls"]] + [
        [f"`{one.key}`", f"{one.self_cpu_time_total / total:.0%}", f"{one.count:,}"] for one in top
    ]


def settings(*changes: str) -> Config:
    """Return params.yaml with changes such as `teacher.seed=1`."""
    return load(ROOT / "params.yaml", changes)


def embedded(train: int, validate: int) -> tuple[TrainingData, Path]:
    """Return the embedded data with so many clips, and the folder with its `dataset`, `recordings` and `features`."""
    config = settings(f"dataset.clips={{train: {train}, validate: {validate}, test: 0}}")
    folder = WORK / f"{train}-{validate}"
    if not (folder / "recordings").exists():
        dataset.run(config.dataset, folder / "dataset", folder / "recordings", Reporter())
    inputs = features.Inputs(folder / "dataset", folder / "recordings")
    features.run(config.features, inputs, folder / "features", Reporter())
    return read_training_data(TrainingFolders(folder / "dataset", folder / "features"), "coarse"), folder
