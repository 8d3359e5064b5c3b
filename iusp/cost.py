"""What a network costs: parameters, multiply-accumulates, bytes and time."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from iusp.config import Features
from iusp.log_mel import clip_length, frame_count, log_mel
from iusp.models import build
from iusp.models.layers import Tagger


def multiply_accumulates(architecture: str, width: int, tags: int, features: Features) -> int:
    """Return the multiply-accumulates of one clip in convolutions, linear layers and LSTMs."""
    # On the meta device nothing is computed, and an LSTM is counted, which PyTorch's CPU kernel hides.
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = build(architecture, width, tags, features.mel_bands).eval()
        network(torch.empty(1, frame_count(features), features.mel_bands))
    return int(counter.get_total_flops()) // 2


def milliseconds_per_clip(networks: Mapping[str, Tagger], features: Features, runs: int) -> dict[str, dict[str, float]]:
    """Measure the latency of one clip on one CPU thread, all networks in turn, so that they meet the same machine.

    Args:
        networks: by name, on the CPU, in evaluation mode.
        features: of the front-end in front of them.
        runs: measurements of each, after one that does not count.

    Returns:
        By name, medians in milliseconds: `network` (log-mel to logits) and `audio_to_tags` (the clip's samples to
        probabilities, front-end included).
    """
    samples = torch.randn(clip_length(features), generator=torch.Generator().manual_seed(0)) / 10
    spectrogram = log_mel(samples, features.sample_rate, features)[None]

    def alone(network: Tagger) -> Callable[[], object]:
        return lambda: network(spectrogram)

    def whole(network: Tagger) -> Callable[[], object]:
        return lambda: network(log_mel(samples, features.sample_rate, features)[None])[0].sigmoid()

    jobs = {(name, "network"): alone(network) for name, network in networks.items()}
    jobs |= {(name, "audio_to_tags"): whole(network) for name, network in networks.items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in jobs}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        for _ in range(runs + 1):
            for key, job in jobs.items():
                start = time.perf_counter()
                job()
                times[key].append((time.perf_counter() - start) * 1000)
    torch.set_num_threads(threads)
    medians: dict[str, dict[str, float]] = {name: {} for name in networks}
    for (name, what), values in times.items():
        medians[name][what] = round(float(np.median(values[1:])), 3)
    return medians
