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
from iusp.data.resampling import read_clip
from iusp.features.log_mel import clip_length, frame_count, log_mel, read_log_mel
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
    frames = torch.randn(frame_count(config), config.window_length)
    power, mel = torch.rand(len(frames), 511), torch.rand(511, config.mel_bands)
    samples = np.random.default_rng(0).standard_normal(RATE * 10).astype(np.float32)
    jobs: dict[str, Callable[[Path], object]] = {
        "ours": lambda path: read_log_mel(path, config).numpy(),
        "theirs": lambda path: theirs(path, config),
        "decode": lambda path: soundfile.read(path, dtype="int16"),
        "resample": lambda path: soxr.resample(samples, RATE, config.sample_rate),
        "FFT": lambda path: torch.fft.rfft(frames),
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
    operations = ("decode", "resample", "FFT", "mel")
    bare = [sum(parts) for parts in zip(*(times[name] for name in operations), strict=True)]
    report.figures.append(
        ratio("lower bound (decode + soxr + FFT + mel product alone) ÷ our time", bare, times["ours"], 0.6)
    )
    report.notes.append(
        f"A clip takes {milliseconds(times['ours'])} ({1 / statistics.median(times['ours']):.0f} clips per second and "
        f"core), with librosa {milliseconds(times['theirs'])}. The operations alone take: "
        + ", ".join(f"{name} {milliseconds(times[name])}" for name in operations)
        + ". The step also verifies each recording's SHA-256. These figures do not include its time, "
        f"{milliseconds(times['checksum'])}."
    )
    length = clip_length(config)
    clip = torch.from_numpy(read_clip(paths[0], config.sample_rate, length))
    stages = interleaved(
        {
            "decode": partial(read, paths[0]),
            "read": partial(read_clip, paths[0], config.sample_rate, length),
            "log-mel": lambda: log_mel(clip, config),
        },
        CLIPS,
    )
    report.notes.append(
        f"Decoding to float32 takes {milliseconds(stages['decode'])}, decoding and resampling "
        f"{milliseconds(stages['read'])}, computing log-mel frames {milliseconds(stages['log-mel'])}."
    )
    report.profiles["log-mel of a clip, by operator"] = operators(lambda: [log_mel(clip, config) for _ in range(CLIPS)])
    report.print()


if __name__ == "__main__":
    main()
