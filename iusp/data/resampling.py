"""Resample recordings to the sample rate of the front-end, in bounded memory.

Training, evaluation, serving and devices all use this module, so that a network gets the same samples everywhere.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from iusp.data.audio import streamed

REACH, KAISER = 128, 5  # half-band filter: flat up to 0.99 of half the new rate, then 54 dB down
Samples = NDArray[np.float32]


def waveform(path: Path, sample_rate: int) -> Iterator[Samples]:
    """Decode a recording block by block, as mono float32 (n,) at a sample rate in Hz.

    Raises:
        iusp.data.audio.BadAudio: the recording cannot be decoded.
    """
    with streamed(path) as (rate, blocks):
        yield from resampled(blocks, rate, sample_rate)


def read_clip(path: Path, sample_rate: int, samples: int) -> Samples:
    """Return the first samples of a recording, mono float32 (samples,), padded with zeros.

    Args:
        path: WAV, FLAC or OGG file.
        sample_rate: sample rate of the result in Hz.
        samples: number of samples to return.

    Raises:
        iusp.data.audio.BadAudio: the recording cannot be decoded.
    """
    clip, filled = np.zeros(samples, np.float32), 0
    for block in waveform(path, sample_rate):
        block = block[: samples - filled]
        clip[filled : filled + len(block)] = block
        filled += len(block)
        if filled == samples:
            break
    return clip


def resampled(blocks: Iterable[Samples], rate: int, sample_rate: int) -> Iterable[Samples]:
    """Resample mono blocks (n,) from one sample rate in Hz to another; the length of the blocks has no effect.

    The usual filter of a resampler attenuates frequencies above nine tenths of half the new rate. A recording made at
    the new rate contains them, and a network would see the difference. Therefore soxr resamples to twice the rate, and
    a steeper filter halves it.
    """
    return blocks if rate == sample_rate else _halved(_doubled(blocks, rate, sample_rate))


def windows(blocks: Iterable[NDArray[np.float32]], size: int, step: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Cut a recording, given as blocks (n,), into overlapping windows.

    Args:
        blocks: the recording.
        size: number of samples of a window.
        step: number of samples between the starts of two windows.

    Yields:
        The index of the first sample of a window, and its samples (size,). The last window is shorter if the recording
        ends in it.
    """
    pending, start = np.empty(0, np.float32), 0
    for block in blocks:
        pending = np.concatenate([pending, block])
        while len(pending) >= size:
            yield start, pending[:size]
            pending, start = pending[step:], start + step
    # The rest, which no window has covered.
    if start == 0 or len(pending) > size - step:
        yield start, pending


def _doubled(blocks: Iterable[Samples], rate: int, sample_rate: int) -> Iterator[Samples]:
    stream = soxr.ResampleStream(rate, 2 * sample_rate, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _halved(blocks: Iterable[Samples]) -> Iterator[Samples]:
    """Apply a half-band filter (a windowed sinc, of which every second tap is zero) and halve the sample rate."""
    distance = np.arange(1 - 2 * REACH, 2 * REACH, 2)
    taps = (np.sinc(distance / 2) / 2 * np.kaiser(4 * REACH - 1, KAISER)[::2]).astype(np.float32)
    edge = np.zeros(2 * REACH, np.float32)
    pending = edge
    for block in chain(blocks, [edge]):
        pending = np.concatenate([pending, block])
        ready = len(pending) // 2 - 2 * REACH
        if ready > 0:
            even, odd = pending[: 2 * (ready + 2 * REACH)].reshape(-1, 2).T
            halved = even[REACH:][:ready] / 2 + np.convolve(odd, taps, "valid")[:ready]
            yield halved.astype(np.float32, copy=False)
            pending = pending[2 * ready :]
