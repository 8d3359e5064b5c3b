"""Training and devices get the same tags from the same file, at every rate."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from iusp.device.runtime import DeviceModel, load
from iusp.features.log_mel import read_log_mel
from tests.support.exported import CONFIG, network

pytestmark = pytest.mark.integration

RATES = (4000, 8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 44_101, 48_000, 96_000, 192_000)


@pytest.fixture(scope="module")
def model(exported: Path) -> DeviceModel:
    return load(exported / "float32.onnx")


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("seconds", [0.5, 2, 3.7])
def test_a_device_computes_what_evaluation_computes(
    rate: int, seconds: float, model: DeviceModel, tmp_path: Path
) -> None:
    samples = 0.05 * np.random.default_rng(rate).standard_normal((round(seconds * rate), 2))
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    spectrogram = read_log_mel(tmp_path / "a.wav", CONFIG)
    with torch.inference_mode():
        exact, stored = (
            network("plain")(values[None])[0].sigmoid().numpy()[0]
            for values in (spectrogram, spectrogram.half().float())
        )
    tagged = list(next(model.tag(tmp_path / "a.wav")).probabilities.values())
    np.testing.assert_allclose(tagged, exact, atol=1e-5)
    # The features step stores float16.
    np.testing.assert_allclose(tagged, stored, atol=2e-3)
