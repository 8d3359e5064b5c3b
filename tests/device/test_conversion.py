"""Exported students: the front-end in ONNX, the four files of a network, what lies beside them, and hostile ones."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from iusp import models
from iusp.artifacts.evaluation import NETS, WHOLE
from iusp.artifacts.metrics import Data
from iusp.config.features import Features
from iusp.device.conversion import write_onnx
from iusp.device.front_end import FrontEnd, front_end
from iusp.device.package import best_thresholds
from iusp.device.runtime import load, open_session
from iusp.errors import InputError
from iusp.features.log_mel import clip_length, frame_count, log_mel
from tests.support.exported import (
    CONFIG,
    DEFAULT,
    GENERATED,
    TAGS,
    Bomb,
    network,
    noise,
    normalised,
    packaged,
    recordings,
    replaced,
)
from tests.support.project import ROOT

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hop_length": 1600, "mel_bands": 32},
        {"hop_length": 625},  # no common divisor: a whole DFT
        {"window_length": 400, "hop_length": 160},
        {"window_length": 256, "hop_length": 700, "high_hz": 4000},  # samples between windows, and a cut at the end
        {"sample_rate": 8000, "high_hz": 4000, "window_length": 510, "hop_length": 300, "clip_seconds": 2},
        {"window_length": 96, "hop_length": 48, "mel_bands": 8, "clip_seconds": 1},
    ],
)
def test_the_exported_front_ends_are_the_one_in_training(changes: dict) -> None:
    config = Features(**DEFAULT.model_dump() | changes)
    model = front_end(config)
    onnx.checker.check_model(model, full_check=True)
    samples = noise(config, 2)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    got = session.run(None, {"waveform": samples.numpy()})[0]
    ours = np.stack([log_mel(one, config).numpy() for one in samples])
    assert got.shape == (2, frame_count(config), config.mel_bands)
    np.testing.assert_allclose(got, ours, atol=2e-4)
    np.testing.assert_allclose(FrontEnd(config)(samples).numpy(), ours, atol=2e-4)


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_every_family_is_exported_and_says_the_same(architecture: str, tmp_path: Path) -> None:
    samples, spectrograms = recordings(8)
    tagger, calibration = normalised(architecture, spectrograms), spectrograms.numpy().astype(np.float16)
    write_onnx(tagger, CONFIG, calibration, tmp_path / "one")
    write_onnx(tagger, CONFIG, calibration, tmp_path / "two")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {*NETS, *WHOLE}
    with torch.inference_mode():
        ours = tagger(spectrograms)[0].sigmoid().numpy()
    assert np.ptp(ours, axis=0).max() > 1e-2, "the network tells the clips apart"
    for name in (*NETS, *WHOLE):
        path = tmp_path / "one" / name
        assert path.read_bytes() == (tmp_path / "two" / name).read_bytes(), "same inputs, same bytes"
        assert str(ROOT).encode() not in path.read_bytes(), "a file names the machine that wrote it"
        onnx.checker.check_model(path, full_check=True)
        session = open_session(path)
        (inputs,), (outputs,) = session.get_inputs(), session.get_outputs()
        assert outputs.name == "probabilities"
        assert not isinstance(inputs.shape[0], int)
        given_values = samples if inputs.name == "waveform" else spectrograms
        for count in (1, 3):
            got = session.run(None, {inputs.name: given_values[:count].numpy()})[0]
            # Bottlenecks whose channels differ by orders of magnitude lose much until training has seen them in int8.
            int8 = 0.2 if architecture == "mobilenetv2" else 0.02
            np.testing.assert_allclose(got, ours[:count], atol=1e-4 if "float32" in name else int8)


def test_only_the_network_is_quantised(calibration: np.ndarray, tmp_path: Path) -> None:
    write_onnx(network("plain"), CONFIG, calibration, tmp_path)
    graph = onnx.load(tmp_path / "int8.onnx").graph
    quantised = {weight.name for weight in graph.initializer if weight.data_type == TensorProto.INT8}
    assert len(quantised) >= 4  # each convolution's kernels
    assert not any(name.startswith("front_end/") for name in quantised)
    scales = [
        weight
        for weight in graph.initializer
        if weight.name.endswith("_scale") and len(weight.dims) and weight.dims[0] > 1
    ]
    assert len(scales) >= 4, "kernels have a scale for each channel"


def naive_threshold(truth: np.ndarray, scores: np.ndarray) -> float:
    """The best F1 of any cut, tried one by one."""
    best = 0.0
    for cut in np.unique(scores):
        hit = (scores >= cut) & truth
        best = max(best, 2 * hit.sum() / ((scores >= cut).sum() + truth.sum()))
    return best


@settings(max_examples=200)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.booleans()), min_size=1, max_size=30))
def test_thresholds_are_the_best_of_all(rows: list[tuple[bool, int, bool]]) -> None:
    truth = np.array([row[0] for row in rows])[:, None]
    scores = np.array([row[1] / 6 for row in rows])[:, None]
    known = np.array([row[2] for row in rows])[:, None]
    (threshold,) = best_thresholds(truth, known, scores)
    truth, scores = truth[known], scores[known]
    if not truth.any():
        assert threshold == 0.5
        return
    hit = (scores >= threshold) & truth
    reached = 2 * hit.sum() / ((scores >= threshold).sum() + truth.sum())
    assert reached == pytest.approx(naive_threshold(truth, scores))
    # Rounding moves no clip over it, but for one whose score is 0.
    assert not np.isclose(scores[scores > 0], threshold, atol=1e-9).any()


@pytest.mark.parametrize(
    ("data", "license_name", "said"),
    [
        (GENERATED, "Apache-2.0", "> **Warning.** Trained and evaluated on generated scenes, not on recordings."),
        (
            GENERATED.model_copy(update={"name": "SONYC-UST 2019", "generated": False, "license": "CC-BY-4.0"}),
            "CC-BY-4.0",
            "The licence of the recordings is CC-BY-4.0; the weights follow it.",
        ),
        (
            GENERATED.model_copy(update={"name": "recordings", "generated": False, "license": None}),
            "NOASSERTION",
            "Check their terms before you distribute the weights.",
        ),
    ],
)
def test_the_licence_follows_the_data(exported: Path, tmp_path: Path, data: Data, license_name: str, said: str) -> None:
    folder = tmp_path / "package"
    shutil.copytree(exported, folder)
    packaged(folder, data)
    card, text = (folder / "MODEL_CARD.md").read_text(), (folder / "LICENSE").read_text()
    assert said in card
    assert data.name in card
    assert ("**Warning.**" in card) == data.generated
    assert json.loads((folder / "device.json").read_text())["license"] == license_name
    assert ("Apache License" in text) == (license_name == "Apache-2.0")
    assert data.generated or f"SPDX-License-Identifier: {license_name}\n" in text
    assert load(folder / "int8.onnx").tags == TAGS


def test_a_package_describes_every_file_and_itself(exported: Path) -> None:
    description = json.loads((exported / "device.json").read_text())
    assert description["tags"] == TAGS
    assert description["thresholds"] == dict(zip(TAGS, [0.25, 0.5, 0.75], strict=True))
    assert description["features"] == CONFIG.model_dump(mode="json")
    names = {path.name for path in exported.iterdir()} - {"device.json"}
    assert names == {*NETS, *WHOLE, "LICENSE", "MODEL_CARD.md"} == set(description["files"])
    for name, one in description["files"].items():
        content = (exported / name).read_bytes()
        assert one == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert "Apache License" in (exported / "LICENSE").read_text()


def test_the_model_card_has_what_the_run_found_and_its_code_runs(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (exported / "MODEL_CARD.md").read_text()
    assert "0.500 [0.500, 0.500]" in card
    assert "λ iusp 100" in card
    assert "int8 loses more than 0.005" in card
    monkeypatch.chdir(exported)
    exec(card.partition("```python\n")[2].partition("```")[0], {})
    assert set(eval(capsys.readouterr().out)) <= set(TAGS)


def test_a_package_is_loaded(exported: Path) -> None:
    model = load(exported / "int8.onnx")
    assert (model.tags, model.sample_rate, model.samples) == (TAGS, CONFIG.sample_rate, clip_length(CONFIG))
    assert model.probabilities(noise(CONFIG, 2).numpy()).shape == (2, 3)


def with_weights_elsewhere(location: str) -> bytes:
    """An ONNX file that takes its weights from another one."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 4]) for name in ("waveform", "probabilities")
    ]
    graph = helper.make_graph(
        [helper.make_node("Add", ["waveform", "w"], ["probabilities"])], "g", values[:1], values[1:], [weights]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()


@pytest.mark.parametrize("what", ["pickle", "torch", "text", "empty", "outside", "absolute", "net", "cut"])
def test_a_hostile_model_is_refused_in_one_line(
    what: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(bytes(64))
    torch.save(Bomb(), tmp_path / "bomb.pt")
    content = {
        "pickle": pickle.dumps(Bomb()),
        "torch": (tmp_path / "bomb.pt").read_bytes(),
        "text": b"no model",
        "empty": b"",
        "outside": with_weights_elsewhere("../secret"),
        "absolute": with_weights_elsewhere(str(tmp_path / "secret")),
        "net": (exported / "net_float32.onnx").read_bytes(),
        "cut": (exported / "float32.onnx").read_bytes()[:-1000],
    }[what]
    path = replaced(exported, tmp_path / "package", content)
    with pytest.raises(InputError) as error:
        load(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "pwned").exists()


def test_files_that_do_not_belong_together_are_refused(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(exported, folder)
    shutil.copy(exported / "int8.onnx", folder / "float32.onnx")
    with pytest.raises(InputError, match=r"not the file that device\.json beside it describes"):
        load(folder / "float32.onnx")
    for change in (
        {"tags": TAGS[:2]},
        {"tags": [*TAGS[:2], "\x1b[2J"]},
        {"thresholds": {}},
        {"features": []},
        {"files": 1},
    ):
        description = json.loads((exported / "device.json").read_text()) | change
        (folder / "device.json").write_text(json.dumps(description))
        with pytest.raises(InputError, match=r"device\.json"):
            load(folder / "int8.onnx")
    (folder / "device.json").unlink()
    with pytest.raises(InputError, match=r"device\.json: No such file"):
        load(folder / "int8.onnx")
