"""The front-end: from a waveform of any sample rate to log-mel frames."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy.fft import next_fast_len, prev_fast_len
from torch import Tensor

from iusp.config.features import Features
from iusp.features.torchaudio_transforms import melscale_fbanks


def frame_count(config: Features) -> int:
    """Return the number of frames of a clip; frames are centred on multiples of the hop length."""
    return 1 + clip_length(config) // config.hop_length


def clip_length(config: Features) -> int:
    """Return the number of samples of a clip at the front-end's rate."""
    return round(config.clip_seconds * config.sample_rate)


@dataclass(frozen=True)
class _Transform:
    """The front-end at one sample rate.

    Attributes:
        length: number of samples of a clip.
        frames: first sample of each frame, in a clip that is padded with half a window at both ends.
        window: float32 (W,), the window.
        mel: float32 (2 · bins, M), weights from the squared real and imaginary parts of each FFT bin, up to the highest
            band, to mel power.
    """

    length: int
    frames: slice | Tensor
    window: Tensor
    mel: Tensor


@lru_cache(maxsize=8)
def _transform(config: Features, sample_rate: int) -> _Transform:
    size = _window_size(config.window_length * sample_rate / config.sample_rate)
    hop, rest = divmod(config.hop_length * sample_rate, config.sample_rate)
    count = frame_count(config)
    starts = (torch.arange(count, dtype=torch.float64) * config.hop_length * sample_rate / config.sample_rate).round()
    mel = mel_weights(config, sample_rate, size)
    # The power in a band grows with the square of the window length, for tones as well as for noise.
    mel = mel * (config.window_length / size) ** 2
    return _Transform(
        length=round(clip_length(config) * sample_rate / config.sample_rate),
        frames=starts.long() if rest else slice(0, count * hop, hop),
        window=torch.hann_window(size),
        mel=mel.repeat_interleave(2, dim=0),
    )


def mel_weights(config: Features, sample_rate: int, size: int) -> Tensor:
    """Return the mel weights (bins, M) of the FFT bins up to the highest band.

    Args:
        config: the front-end's settings.
        sample_rate: sample rate in Hz.
        size: number of samples of the FFT.
    """
    used = math.ceil(config.high_hz * size / sample_rate)
    filters: Tensor = melscale_fbanks(size // 2 + 1, config.low_hz, config.high_hz, config.mel_bands, sample_rate)
    return filters[:used]


def _window_size(samples: float) -> int:
    """Return `samples` if it is even, else the nearest even number whose FFT is fast (within 0.3 % at usual rates)."""
    if samples % 2 == 0:
        return int(samples)
    half = samples / 2
    shorter, longer = 2 * prev_fast_len(math.floor(half)), 2 * next_fast_len(math.ceil(half))
    return int(min(shorter, longer, key=lambda size: abs(size - samples)))


def log_mel(samples: Tensor, sample_rate: int, config: Features) -> Tensor:
    """Compute log-mel features of one clip.

    Spectra are computed at the clip's own sample rate, in windows of the same duration at every rate. Nothing is
    resampled, so there is no aliasing, and no loss at the upper end of the bands.

    Args:
        samples: mono float32 (n,) in [-1, 1].
        sample_rate: sample rate of `samples` in Hz.
        config: the front-end's settings.

    Returns:
        float32 (T, M): natural logarithm of the mel power (HTK scale, Hann window) plus `log_offset`. The clip is first
        zero-padded or cut to `clip_seconds`.
    """
    transform = _transform(config, sample_rate)
    size, bins = len(transform.window), len(transform.mel) // 2
    edge = size // 2
    samples = samples[: transform.length]
    padded = samples.new_empty(transform.length + size)
    padded[edge : edge + len(samples)] = samples
    padded[edge + len(samples) :] = 0
    # Pad both ends by reflection.
    padded[:edge] = padded[edge + 1 : size + 1].flip(0)
    padded[-edge:] = padded[-size - 1 : -edge - 1].flip(0)
    frames = padded.unfold(0, size, 1)[transform.frames]
    spectrum = torch.view_as_real(torch.fft.rfft(frames * transform.window)[:, :bins])
    # One matrix product sums real and imaginary parts as well as bins.
    power = spectrum.square().flatten(1) @ transform.mel
    return power.add_(config.log_offset).log_()
