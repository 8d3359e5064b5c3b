"""Recordings of any length, rate and number of channels: resampled, cut into windows and tagged, in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from iusp.audio import streamed
from iusp.device.runtime import DeviceModel
from iusp.errors import InputError

REACH, KAISER = 128, 5  # of the filter that halves a rate: flat up to 0.99 of half the new one, then 54 dB down
Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """What is in a part of a recording.

    Attributes:
        start: seconds from the recording's beginning.
        end: likewise; the recording's own end in its last window.
        probabilities: by tag.
        tags: those whose probability reaches their threshold.
    """

    start: float
    end: float
    probabilities: dict[str, float]
    tags: list[str]


def waveform(path: Path, sample_rate: int) -> Iterator[Samples]:
    """Decode a recording block by block, as mono float32 (n,) at a sample rate in Hz.

    Training takes spectra at a recording's own rate, whose bands reach half the sample rate undamped. A resampler's
    usual filter begins to damp at nine tenths of it; so soxr gives twice the rate, and a steeper filter halves that.

    Raises:
        iusp.audio.BadAudio: it cannot be decoded.
    """
    with streamed(path) as (rate, blocks):
        if rate == sample_rate:
            yield from blocks
            return
        yield from _halved(_resampled(blocks, rate, 2 * sample_rate))


def _resampled(blocks: Iterator[Samples], rate: int, sample_rate: int) -> Iterator[Samples]:
    stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _halved(blocks: Iterator[Samples]) -> Iterator[Samples]:
    """Halve the sample rate behind a half-band filter: a windowed sinc, of which every second tap is zero."""
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


def tag(path: Path, model: DeviceModel, window: float, hop: float) -> Iterator[Window]:
    """Tag a recording window by window; the last one, and so a short recording, is padded with zeros.

    Args:
        path: WAV, FLAC or OGG.
        model: the network.
        window: seconds, at most the model's clip; a shorter one is padded.
        hop: seconds from one window's start to the next one's, at most `window`.

    Raises:
        InputError: window and hop do not fit.
        iusp.audio.BadAudio: the recording cannot be decoded.
    """
    longest = model.samples / model.sample_rate
    if not 1 / model.sample_rate <= hop <= window <= longest:
        raise InputError(f"--window {window:g} --hop {hop:g}: 0 < hop <= window <= {longest:g} s must hold")
    size, step = round(window * model.sample_rate), round(hop * model.sample_rate)
    pending, start = np.empty(0, np.float32), 0
    for block in waveform(path, model.sample_rate):
        pending = np.concatenate([pending, block])
        while len(pending) >= size:
            yield _window(model, pending[:size], start)
            pending, start = pending[step:], start + step
    # What the last window has not seen.
    if start == 0 or len(pending) > size - step:
        yield _window(model, pending, start)


def _window(model: DeviceModel, samples: Samples, start: int) -> Window:
    clip = np.zeros((1, model.samples), np.float32)
    clip[0, : len(samples)] = samples
    probabilities = dict(zip(model.tags, model.probabilities(clip)[0].tolist(), strict=True))
    return Window(
        start=start / model.sample_rate,
        end=(start + len(samples)) / model.sample_rate,
        probabilities=probabilities,
        tags=[tag for tag, value in probabilities.items() if value >= model.thresholds[tag]],
    )
