"""From an audio file to log-mel frames, compared with librosa and with the calls that cannot be left out."""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import librosa
import numpy as np
import soundfile
import soxr
import torch
from scipy.signal import resample_poly

from benchmarks.speed.timing import (
    WORK,
    Report,
    embedded,
    interleaved,
    milliseconds,
    one_thread,
    operators,
    ratio,
    settings,
)
from iusp.config.features import Features
from iusp.data.audio import read
from iusp.features.log_mel import frame_count, log_mel
from iusp.io.files import sha256

CLIPS, ROUNDS = 12, 10
RATE = 44_100


def recordings() -> list[Path]:
    """Write embedded scenes as 44.1 kHz, 16 bit WAV files."""
    _, folder = embedded(250, 50)
    output = WORK / "wav"
    output.mkdir(exist_ok=True)
    for path in sorted((folder / "recordings").iterdir())[:CLIPS]:
        samples, rate = soundfile.read(path)
        soundfile.write(output / f"{path.stem}.wav", resample_poly(samples, RATE // 100, rate // 100), RATE)
    return sorted(output.iterdir())


def ours(path: Path, config: Features) -> np.ndarray:
    """Compute log-mel frames as the features step does."""
    samples, rate = read(path)
    return log_mel(torch.from_numpy(samples), rate, config).numpy()


def theirs(path: Path, config: Features) -> np.ndarray:
    """Compute them as a user of librosa would."""
    samples, rate = librosa.load(path, sr=config.sample_rate)
    return librosa.feature.melspectrogram(
        y=samples, sr=rate, n_fft=config.window_length, hop_length=config.hop_length, n_mels=config.mel_bands
    )


def main() -> None:
    """Measure and print."""
    one_thread()
    config = settings().features
    paths = recordings()
    frames = torch.randn(frame_count(config), 2816)  # 64 ms at 44.1 kHz
    power, mel = torch.rand(len(frames), 511), torch.rand(511, config.mel_bands)
    short = torch.randn(len(frames), config.window_length)
    samples = np.random.default_rng(0).standard_normal(RATE * 10).astype(np.float32)
    jobs: dict[str, Callable[[Path], object]] = {
        "ours": lambda path: ours(path, config),
        "theirs": lambda path: theirs(path, config),
        "decode": lambda path: soundfile.read(path, dtype="int16"),
        "resample": lambda path: soxr.resample(samples, RATE, config.sample_rate),
        "FFT": lambda path: torch.fft.rfft(frames),
        "FFT at 16 kHz": lambda path: torch.fft.rfft(short),
        "mel": lambda path: power @ mel,
        "checksum": sha256,
    }

    def over_clips(job: Callable[[Path], object]) -> Callable[[], object]:
        return lambda: [job(path) for path in paths]

    # A job processes all clips before the next job begins, as the step does, because jobs evict each other's caches.
    times = interleaved({name: over_clips(job) for name, job in jobs.items()}, ROUNDS)
    times = {name: [seconds / len(paths) for seconds in values] for name, values in times.items()}
    report = Report()
    report.figures.append(ratio("clips per second and core, against librosa", times["theirs"], times["ours"], 20))
    bare = [sum(parts) for parts in zip(times["decode"], times["FFT"], times["mel"], strict=True)]
    report.figures.append(ratio("lower bound (decode + FFT + mel product alone) ÷ our time", bare, times["ours"], 0.6))
    usual = ("decode", "resample", "FFT at 16 kHz", "mel")
    whole = [sum(parts) for parts in zip(*(times[name] for name in usual), strict=True)]
    report.figures.append(
        ratio(
            "lower bound of the alternative (decode + soxr + FFT + mel product alone) ÷ our time",
            whole,
            times["ours"],
            0.6,
        )
    )
    report.notes.append(
        f"A clip takes {milliseconds(times['ours'])} ({1 / statistics.median(times['ours']):.0f} clips per second and "
        f"core), with librosa {milliseconds(times['theirs'])}. The operations alone take: "
        + ", ".join(f"{name} {milliseconds(times[name])}" for name in (*usual[:2], "FFT", "mel"))
        + ". The step also verifies each recording's SHA-256. These figures do not include its time, "
        f"{milliseconds(times['checksum'])}."
    )
    decoded, rate = read(paths[0])
    stages = interleaved(
        {"read": partial(read, paths[0]), "log-mel": lambda: log_mel(torch.from_numpy(decoded), rate, config)}, CLIPS
    )
    report.notes.append(
        "Reading (decoding, and conversion from 16 bit to float32) takes "
        f"{milliseconds(stages['read'])}, computing log-mel frames takes {milliseconds(stages['log-mel'])}."
    )
    report.profiles["log-mel of 44.1 kHz clips, by operator"] = operators(
        lambda: [log_mel(torch.from_numpy(decoded), rate, config) for _ in range(CLIPS)]
    )
    report.print()


if __name__ == "__main__":
    main()
