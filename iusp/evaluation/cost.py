"""What a network costs: parameters, multiply-accumulates, bytes and time."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from iusp.config.features import Features
from iusp.features.log_mel import frame_count
from iusp.models import build

Key = TypeVar("Key", bound=Hashable)


def multiply_accumulates(architecture: str, width: int, tags: int, features: Features) -> int:
    """Return the multiply-accumulates of one clip in convolutions, linear layers and LSTMs."""
    # On the meta device nothing is computed, and an LSTM is counted, which PyTorch's CPU kernel hides.
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = build(architecture, width, tags, features.mel_bands).eval()
        network(torch.empty(1, frame_count(features), features.mel_bands))
    return int(counter.get_total_flops()) // 2


def milliseconds(jobs: Mapping[Key, Callable[[], object]], runs: int) -> dict[Key, dict[str, float]]:
    """Measure how long jobs take on one CPU thread, all in turn, so that they meet the same machine.

    Args:
        jobs: by any key.
        runs: measurements of each, after one that does not count.

    Returns:
        By key, the milliseconds `p50` (median) and `p95`.
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
    return {
        key: {f"p{share}": round(float(np.percentile(values[1:], share)), 3) for share in (50, 95)}
        for key, values in times.items()
    }
