"""What the exported files compute and cost, beside the network in PyTorch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from iusp.config.features import Features
from iusp.data.audio import BadAudio
from iusp.device.conversion import NETS, WHOLE
from iusp.device.resampling import waveform
from iusp.device.runtime import open_session
from iusp.errors import InputError
from iusp.evaluation.cost import milliseconds
from iusp.features.log_mel import clip_length, log_mel
from iusp.models.layers import Tagger

TORCH = "torch"
RUNTIMES = (TORCH, "float32", "int8")
WHATS = ("network", "audio_to_tags")
BATCH = 16

Scores = NDArray[np.float64]


def latency(
    networks: Mapping[str, Tagger], folders: Mapping[str, Path], config: Features, runs: int
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Measure one clip on one CPU thread, in all networks and runtimes in turn, so that they meet the same machine.

    Args:
        networks: by name, on the CPU, in evaluation mode.
        folders: by name, what `write_onnx` wrote of them.
        config: of the front-end in front of them.
        runs: measurements of each, after one that does not count.

    Returns:
        By name, runtime (`RUNTIMES`) and what (`network`: log-mel to probabilities; `audio_to_tags`: the clip's samples
        to probabilities), the milliseconds `p50` and `p95`.
    """
    samples = torch.randn(clip_length(config), generator=torch.Generator().manual_seed(0)) / 10
    spectrogram = log_mel(samples, config.sample_rate, config)[None]
    jobs: dict[tuple[str, str, str], Callable[[], object]] = {}

    def in_torch(network: Tagger) -> list[Callable[[], object]]:
        return [
            lambda: network(spectrogram)[0].sigmoid(),
            lambda: network(log_mel(samples, config.sample_rate, config)[None])[0].sigmoid(),
        ]

    def in_onnx(path: Path, given: NDArray[np.float32]) -> Callable[[], object]:
        session = open_session(path)
        values = {session.get_inputs()[0].name: given}
        return lambda: session.run(None, values)

    for name, network in networks.items():
        for what, job in zip(WHATS, in_torch(network), strict=True):
            jobs[name, TORCH, what] = job
        for runtime, net, whole in zip(RUNTIMES[1:], NETS, WHOLE, strict=True):
            jobs[name, runtime, "network"] = in_onnx(folders[name] / net, spectrogram.numpy())
            jobs[name, runtime, "audio_to_tags"] = in_onnx(folders[name] / whole, samples.numpy()[None])
    times = milliseconds(jobs, runs)
    return {
        name: {runtime: {what: times[name, runtime, what] for what in WHATS} for runtime in RUNTIMES}
        for name in networks
    }


def net_scores(folder: Path, spectrograms: NDArray[np.float16]) -> dict[str, Scores]:
    """Return the probabilities (N, K) of log-mel (N, T, M) by each file of `NETS`."""
    scores = {}
    for name in NETS:
        session = open_session(folder / name)
        parts = [session.run(None, {"log_mel": part.astype(np.float32)})[0] for part in _batches(spectrograms)]
        scores[name] = np.concatenate(parts).astype(np.float64)
    return scores


def whole_scores(
    networks: Mapping[str, Tagger], folders: Mapping[str, Path], config: Features, clips: Sequence[Path]
) -> dict[str, dict[str, Scores]]:
    """Return, by network, the probabilities (N, K) of recordings by PyTorch (`TORCH`) and by each file of `WHOLE`.

    All hear the same samples at the front-end's rate, as `iusp tag` would give them. The recordings are read once and a
    few at a time.

    Raises:
        InputError: a recording cannot be decoded.
    """
    sessions = {(name, file): open_session(folders[name] / file) for name in networks for file in WHOLE}
    scores: dict[str, dict[str, list[NDArray[np.float32]]]] = {
        name: {file: [] for file in (TORCH, *WHOLE)} for name in networks
    }
    for paths in _batches(clips):
        samples = np.stack([_clip(path, config) for path in paths])
        spectrograms = torch.stack([log_mel(torch.from_numpy(one), config.sample_rate, config) for one in samples])
        with torch.inference_mode():
            for name, network in networks.items():
                scores[name][TORCH].append(network(spectrograms)[0].sigmoid().numpy())
        for (name, file), session in sessions.items():
            scores[name][file].append(session.run(None, {"waveform": samples})[0])
    return {
        name: {file: np.concatenate(parts).astype(np.float64) for file, parts in by_file.items()}
        for name, by_file in scores.items()
    }


def _batches(items: Any) -> Iterator[Any]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def _clip(path: Path, config: Features) -> NDArray[np.float32]:
    length = clip_length(config)
    try:
        samples = np.concatenate(list(waveform(path, config.sample_rate)))[:length]
    except BadAudio as reason:
        raise InputError(f"{path}: {reason}; it has changed since, run the dataset step again") from None
    return np.pad(samples, (0, length - len(samples)))
