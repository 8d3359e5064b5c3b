"""The cost of a network: multiply-accumulates and time."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from iusp.artifacts.metrics import Percentiles
from iusp.config.features import Features
from iusp.features.log_mel import frame_count
from iusp.models import build

Key = TypeVar("Key", bound=Hashable)


def multiply_accumulates(architecture: str, width: int, tags: int, features: Features) -> int:
    """Count the multiply-accumulates of convolutions, linear layers and LSTMs for one clip."""
    # The meta device computes nothing. It also lets the counter see an LSTM, which PyTorch's CPU kernel hides.
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = build(architecture, width, tags, features.mel_bands).eval()
        network(torch.empty(1, frame_count(features), features.mel_bands))
    return int(counter.get_total_flops()) // 2


def milliseconds(jobs: Mapping[Key, Callable[[], object]], runs: int) -> dict[Key, Percentiles]:
    """Measure how long jobs take on one CPU thread. The jobs take turns, so that changes in load affect all equally.

    Args:
        jobs: functions to time, by any key.
        runs: number of measurements of each job, after one warm-up run.

    Returns:
        Median and 95th percentile of each job.
    """
    times: dict[Key, list[float]] = {key: [] for key in jobs}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        for _ in range(runs + 1):
            for key, job in jobs.items():
                start = time.perf_counter()
                job()
                times[key].append((time.perf_counter() - start) * 1000)
    torch.set_num_threads(threads)
    return {key: _percentiles(values[1:]) for key, values in times.items()}


def _percentiles(values: list[float]) -> Percentiles:
    p50, p95 = (round(float(np.percentile(values, share)), 3) for share in (50, 95))
    return Percentiles(p50=p50, p95=p95)
