from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from iusp.data import audio
from iusp.data.resampling import Samples, read_clip, resampled, waveform

RATE = 16_000
RATES = (4000, 8000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 44_101, 48_000, 88_200, 96_000, 192_000)


def noise(length: int, seed: int = 0) -> Samples:
    return (0.1 * np.random.default_rng(seed).standard_normal(length)).astype(np.float32)


def converted(samples: Samples, rate: int, *cuts: int) -> Samples:
    return np.concatenate([np.empty(0, np.float32), *resampled(np.split(samples, cuts), rate, RATE)])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(RATES), st.integers(1, 20_000), st.lists(st.floats(0, 1), max_size=4))
def test_blocks_change_neither_a_sample_nor_the_length(rate: int, length: int, shares: list[float]) -> None:
    samples = noise(length)
    whole = converted(samples, rate)
    assert abs(len(whole) - length * RATE / rate) <= 1
    cuts = sorted(round(share * length) for share in shares)
    assert np.array_equal(converted(samples, rate, *cuts), whole)


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate > RATE])
def test_tones_below_half_the_new_rate_stay_and_those_above_it_go(rate: int) -> None:
    time, new_time = np.arange(rate) / rate, np.arange(RATE) / RATE
    low, high = (np.sin(2 * np.pi * hertz * time).astype(np.float32) for hertz in (7900, 8200))
    inside = slice(800, -800)  # the ends lack neighbours
    expected = np.sin(2 * np.pi * 7900 * new_time)[inside]
    np.testing.assert_allclose(converted(low, rate)[inside], expected, atol=0.01)
    assert np.abs(converted(high, rate)[inside]).max() < 0.01


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate < RATE])
def test_low_rates_gain_nothing_above_half_their_rate(rate: int) -> None:
    spectrum = np.abs(np.fft.rfft(converted(noise(rate), rate)[:RATE] * np.hanning(RATE))) ** 2
    assert spectrum[int(rate * 0.52) :].sum() < 1e-4 * spectrum.sum()
    time = np.arange(rate) / rate
    tone = np.sin(2 * np.pi * 0.4 * rate * time).astype(np.float32)
    expected = np.sin(2 * np.pi * 0.4 * rate * np.arange(RATE) / RATE)
    np.testing.assert_allclose(converted(tone, rate)[800:-800], expected[800:-800], atol=0.01)


@pytest.mark.parametrize("rate", [8000, RATE, 44_100])
@pytest.mark.parametrize("seconds", [0.01, 1, 2.5])
def test_a_clip_is_the_start_of_its_recording(
    rate: int, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "BLOCK_VALUES", 5000)
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(round(rate * seconds)), rate)
    whole = np.concatenate(list(waveform(path, RATE)))[:RATE]
    clip = read_clip(path, RATE, RATE)
    assert (clip.dtype, clip.shape) == (np.float32, (RATE,))
    assert np.array_equal(clip[: len(whole)], whole)
    assert not clip[len(whole) :].any()
