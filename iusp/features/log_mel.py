"""The front-end: from a waveform to log-mel frames."""

import math
import warnings
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from iusp.config.features import Features
from iusp.data.resampling import read_clip
from iusp.features.torchaudio_transforms import melscale_fbanks


def frame_count(config: Features) -> int:
    """Return the number of frames of a clip; frames are centred on multiples of the hop length."""
    return 1 + clip_length(config) // config.hop_length


def clip_length(config: Features) -> int:
    """Return the number of samples of a clip at the front-end's rate."""
    return round(config.clip_seconds * config.sample_rate)


def mel_weights(config: Features) -> Tensor:
    """Return the mel weights, float32 (bins, M), of the FFT bins up to the highest band (HTK scale).

    A band that is narrower than the distance between two bins may contain none; its weights are 0.
    """
    size, rate = config.window_length, config.sample_rate
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "At least one mel filterbank")  # the features step says so in its own words
        filters: Tensor = melscale_fbanks(size // 2 + 1, config.low_hz, config.high_hz, config.mel_bands, rate)
    return filters[: math.ceil(config.high_hz * size / rate)]


@lru_cache(maxsize=8)
def _window_and_weights(config: Features) -> tuple[Tensor, Tensor]:
    """Return the window (W,), and the mel weights (2 · bins, M) of the squared real and imaginary part of each bin."""
    return torch.hann_window(config.window_length), mel_weights(config).repeat_interleave(2, dim=0)


def log_mel(samples: Tensor, config: Features) -> Tensor:
    """Compute log-mel features of one clip.

    Args:
        samples: mono float32 (n,) in [-1, 1], at the front-end's rate (see `iusp.data.resampling`).
        config: the front-end's settings.

    Returns:
        float32 (T, M): natural logarithm of the mel power (HTK scale, Hann window) plus `log_offset`. The clip is first
        zero-padded or cut to `clip_seconds`, then padded by reflection at both ends.
    """
    window, mel = _window_and_weights(config)
    length, size = clip_length(config), config.window_length
    edge = size // 2
    samples = samples[:length]
    padded = samples.new_empty(length + size)
    padded[edge : edge + len(samples)] = samples
    padded[edge + len(samples) :] = 0
    padded[:edge] = padded[edge + 1 : size + 1].flip(0)
    padded[-edge:] = padded[-size - 1 : -edge - 1].flip(0)
    frames = padded.unfold(0, size, config.hop_length)
    spectrum = torch.view_as_real(torch.fft.rfft(frames * window)[:, : len(mel) // 2])
    # One matrix product sums real and imaginary parts as well as bins.
    power = spectrum.square().flatten(1) @ mel
    return power.add_(config.log_offset).log_()


def read_log_mel(path: Path, config: Features) -> Tensor:
    """Compute log-mel features of a recording; what exceeds `clip_seconds` is not read.

    Args:
        path: WAV, FLAC or OGG file of any sample rate and number of channels.
        config: the front-end's settings.

    Returns:
        float32 (T, M), as `log_mel` returns it.

    Raises:
        iusp.data.audio.BadAudio: the recording cannot be decoded.
    """
    return log_mel(torch.from_numpy(read_clip(path, config.sample_rate, clip_length(config))), config)
