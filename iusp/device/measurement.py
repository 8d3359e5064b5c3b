"""Compare the output and the time of exported files with those of the network in PyTorch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from iusp.artifacts.evaluation import NETS, WHOLE
from iusp.artifacts.metrics import Latencies, NetworkTimes, Times
from iusp.config.features import Features
from iusp.data.audio import BadAudio
from iusp.data.resampling import waveform, windows
from iusp.device.runtime import open_session
from iusp.errors import InputError
from iusp.evaluation.cost import milliseconds
from iusp.features.log_mel import clip_length, log_mel, read_log_mel
from iusp.models.layers import Tagger

TORCH = "torch"
BATCH = 16

Scores = NDArray[np.float64]


Job = Callable[[], object]


def measure_latencies(
    networks: Mapping[str, Tagger], folders: Mapping[str, Path], config: Features, runs: int
) -> Latencies:
    """Measure the time for one clip on one CPU thread. All networks and runtimes take turns, so load affects all alike.

    Args:
        networks: networks by name, on the CPU, in evaluation mode.
        folders: folder that `write_onnx` wrote for each network.
        config: settings of the front-end.
        runs: number of measurements of each job, after one warm-up run.
    """
    jobs = {
        (name, *key): job
        for name, network in networks.items()
        for key, job in _jobs(network, folders[name], config).items()
    }
    times = milliseconds(jobs, runs)

    def measured(name: str, runtime: str) -> Times:
        network, whole = (times[name, runtime, what] for what in ("network", "audio_to_tags"))
        return Times(network=network, audio_to_tags=whole)

    return {
        name: NetworkTimes(torch=measured(name, TORCH), float32=measured(name, "float32"), int8=measured(name, "int8"))
        for name in networks
    }


def _jobs(network: Tagger, folder: Path, config: Features) -> dict[tuple[str, str], Job]:
    """Return the functions to time, by runtime and by output."""
    samples = torch.randn(clip_length(config), generator=torch.Generator().manual_seed(0)) / 10
    spectrogram = log_mel(samples, config)[None]
    jobs: dict[tuple[str, str], Job] = {
        (TORCH, "network"): lambda: network(spectrogram)[0].sigmoid(),
        (TORCH, "audio_to_tags"): lambda: network(log_mel(samples, config)[None])[0].sigmoid(),
    }
    for runtime, net, whole in zip(("float32", "int8"), NETS, WHOLE, strict=True):
        jobs[runtime, "network"] = _onnx_job(folder / net, spectrogram.numpy())
        jobs[runtime, "audio_to_tags"] = _onnx_job(folder / whole, samples.numpy()[None])
    return jobs


def _onnx_job(path: Path, values: NDArray[np.float32]) -> Job:
    session = open_session(path)
    inputs = {session.get_inputs()[0].name: values}
    return lambda: session.run(None, inputs)


def net_scores(folder: Path, spectrograms: NDArray[np.float16]) -> dict[str, Scores]:
    """Return the probabilities (N, K) that each file of `NETS` gives for log-mel (N, T, M)."""
    scores = {}
    for name in NETS:
        session = open_session(folder / name)
        parts = [session.run(None, {"log_mel": part.astype(np.float32)})[0] for part in _batches(spectrograms)]
        scores[name] = np.concatenate(parts).astype(np.float64)
    return scores


def whole_scores(
    networks: Mapping[str, Tagger], folders: Mapping[str, Path], config: Features, clips: Sequence[Path]
) -> dict[str, dict[str, Scores]]:
    """Return the probabilities (N, K) that each network gives for recordings, in PyTorch and by each file of `WHOLE`.

    The code of the features step reads the recordings for PyTorch, and the code of `iusp tag` reads them for the files.

    Args:
        networks: networks by name, on the CPU, in evaluation mode.
        folders: folder that `write_onnx` wrote for each network.
        config: settings of the front-end.
        clips: paths of the recordings.

    Returns:
        Probabilities by network, then by `TORCH` or file.

    Raises:
        InputError: a recording cannot be decoded.
    """
    sessions = {(name, file): open_session(folders[name] / file) for name in networks for file in WHOLE}
    scores: dict[str, dict[str, list[NDArray[np.float32]]]] = {
        name: {file: [] for file in (TORCH, *WHOLE)} for name in networks
    }
    for paths in _batches(clips):
        samples, spectrograms = _read(paths, config)
        with torch.inference_mode():
            for name, network in networks.items():
                scores[name][TORCH].append(network(spectrograms)[0].sigmoid().numpy())
        for (name, file), session in sessions.items():
            scores[name][file].append(session.run(None, {"waveform": samples})[0])
    return {
        name: {file: np.concatenate(parts).astype(np.float64) for file, parts in by_file.items()}
        for name, by_file in scores.items()
    }


Items = TypeVar("Items", Sequence[Path], NDArray[np.float16])


def _batches(items: Items) -> Iterator[Items]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def _read(paths: Sequence[Path], config: Features) -> tuple[NDArray[np.float32], torch.Tensor]:
    """Read the first window of recordings as devices do (B, samples), and their log-mel (B, T, M) as training does."""
    length = clip_length(config)
    samples, spectrograms = np.zeros((len(paths), length), np.float32), []
    for row, path in enumerate(paths):
        try:
            _, window = next(windows(waveform(path, config.sample_rate), length, length))
            spectrograms.append(read_log_mel(path, config))
        except BadAudio as reason:
            raise InputError(f"{path}: {reason}; it has changed, run the dataset step again") from None
        samples[row, : len(window)] = window
    return samples, torch.stack(spectrograms)
