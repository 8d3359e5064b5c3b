"""The front-end: a waveform of any rate to log-mel frames."""

from functools import lru_cache

import torch
from torch import Tensor

from iusp.config import Features
from iusp.torchaudio_transforms import MelSpectrogram, Resample


def frame_count(config: Features) -> int:
    """Return the number of frames of a clip; frames are centred on multiples of the hop length."""
    return 1 + clip_length(config) // config.hop_length


def clip_length(config: Features) -> int:
    """Return the number of samples of a clip at the front-end's rate."""
    return round(config.clip_seconds * config.sample_rate)


@lru_cache(maxsize=8)
def _resample(source: int, target: int) -> Resample:
    return Resample(source, target)


@lru_cache(maxsize=2)
def _mel(config: Features) -> MelSpectrogram:
    return MelSpectrogram(
        sample_rate=config.sample_rate,
        n_fft=config.window_length,
        hop_length=config.hop_length,
        f_min=config.low_hz,
        f_max=config.high_hz,
        n_mels=config.mel_bands,
    )


def log_mel(samples: Tensor, sample_rate: int, config: Features) -> Tensor:
    """Compute log-mel features of one clip.

    Args:
        samples: mono float32 (n,) in [-1, 1].
        sample_rate: of `samples`, Hz.
        config: the front-end's settings.

    Returns:
        float32 (T, M): natural logarithm of the mel power (HTK scale, Hann window) plus `log_offset`, of the clip
        resampled, then zero-padded or cut to `clip_seconds`.
    """
    length = clip_length(config)
    # Cut before resampling: a long recording must not cost more than a clip. One second is ample for the filter's edge.
    samples = samples[: round((config.clip_seconds + 1) * sample_rate)]
    # The filter bank has as many filters as the rates have in common too little: 44,101 Hz would take 1 GB. Rounded to
    # 50 Hz, no pitch moves by more than 0.6 % (at 4 kHz; 0.06 % at 44.1 kHz).
    sample_rate = round(sample_rate / 50) * 50
    if sample_rate != config.sample_rate:
        samples = _resample(sample_rate, config.sample_rate)(samples)
    samples = torch.nn.functional.pad(samples[:length], (0, max(0, length - samples.numel())))
    return torch.log(_mel(config)(samples) + config.log_offset).T
