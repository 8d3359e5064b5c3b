"""Registered students behind MLflow's server, over real HTTP, and in Python; with good, bad and hostile input."""

import base64
import http.client
import io
import json
import pickle
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

import iusp
from iusp import models
from iusp.cli.main import main
from iusp.data.audio import BadAudio
from iusp.device.runtime import DeviceModel, load, open_session
from iusp.errors import InputError
from iusp.features.log_mel import frame_count, log_mel
from iusp.registry.export import export
from iusp.registry.serving import MAX_BYTES, MAX_CLIPS, MAX_SECONDS
from iusp.registry.versions import register
from iusp.reporter import Reporter
from tests.support.exported import CONFIG, TAGS, Bomb, replaced
from tests.support.local_servers import environment, free_port, started
from tests.support.project import ROOT, merged

pytestmark = pytest.mark.slow

RATE, NAME = 16000, "iusp-student"
PAGE = (ROOT / "docs/serving.md").read_text()
Clip = dict[str, Any]


def add_version(uri: str, model: Path) -> int:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name("e")
    artifacts = Path(uri.removeprefix("sqlite:///")).with_name("artifacts").as_uri()
    experiment = found.experiment_id if found else client.create_experiment("e", artifact_location=artifacts)
    return register(client, NAME, client.create_run(experiment).info.run_id, model, {}, Reporter())


@pytest.fixture(scope="module")
def uri(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry whose champion is an exported student."""
    folder = tmp_path_factory.mktemp("registry")
    student, model = folder / "student", folder / "model"
    student.mkdir()
    for name in ("weights.safetensors", "config.json", "record.csv"):
        (student / name).write_text(name)
    export(student, model)
    shutil.copytree(exported, model / "device")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    MlflowClient(uri).set_registered_model_alias(NAME, "champion", str(add_version(uri, model)))
    return uri


@pytest.fixture(autouse=True)
def _registry(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(uri)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def port(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The server, started as the documentation says."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    (documented,) = re.findall(r"^    (mlflow models serve .*)$", PAGE, re.MULTILINE)
    command = documented.replace("--port 5000", f"--port {port}").split()
    env = environment() | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    with started(command, port, folder, env) as process:
        yield port
        assert process.poll() is None, (folder / "log").read_text()[-3000:]


@pytest.fixture
def post(port: int) -> Callable[..., tuple[int, Any]]:
    def post(body: Any, content_type: str | None = "application/json") -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", "/invocations", content, {"Content-Type": content_type} if content_type else {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    return post


def sound(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=round(seconds * rate)) / 10).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str | None = None) -> str:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return base64.b64encode(file.getvalue()).decode()


def spectrogram(seed: int) -> list[list[float]]:
    return log_mel(torch.from_numpy(sound(2, seed=seed)), CONFIG).tolist()


def windows(model: DeviceModel, content: str, tmp_path: Path) -> list[Clip]:
    """What a recording's answer must be."""
    (tmp_path / "posted").write_bytes(base64.b64decode(content))
    return [vars(window) for window in model.tag(tmp_path / "posted")]


@pytest.fixture(scope="module")
def model(exported: Path) -> DeviceModel:
    return load(exported / "float32.onnx")


GOOD = {"audio": encoded(sound(0.5))}


def test_recordings_get_tags_with_times(post: Callable, model: DeviceModel, tmp_path: Path) -> None:
    contents = [
        encoded(sound(5.5)),
        encoded(np.stack([sound(3, 44100)] * 2, axis=1), 44100, "FLAC"),
        encoded(sound(1, 48000), 48000, "OGG"),
    ]
    status, answer = post({"inputs": [{"audio": one} for one in contents]})
    assert status == 200
    assert answer == {"predictions": [windows(model, one, tmp_path) for one in contents]}
    assert [window["start"] for window in answer["predictions"][0]] == [0, 1, 2, 3, 4]
    assert answer["predictions"][0][-1]["end"] == 5.5
    for window in answer["predictions"][0]:
        assert list(window["probabilities"]) == TAGS
        assert window["tags"] == [tag for tag in TAGS if window["probabilities"][tag] >= model.thresholds[tag]]


def test_log_mel_is_what_the_network_takes_and_says_what_its_audio_says(post: Callable, exported: Path) -> None:
    frames = [spectrogram(seed) for seed in (1, 2)]
    exact = encoded(sound(2, seed=2), subtype="FLOAT")
    status, answer = post({"inputs": [{"log_mel": frames[0]}, {"audio": exact}, {"log_mel": frames[1]}]})
    assert status == 200
    net = open_session(exported / "net_float32.onnx")
    expected = net.run(None, {"log_mel": np.array(frames, np.float32)})[0]
    (first,), (heard,), (second,) = answer["predictions"]
    np.testing.assert_allclose([list(one["probabilities"].values()) for one in (first, second)], expected, atol=1e-6)
    assert (first["start"], first["end"]) == (0, 2)
    np.testing.assert_allclose(list(heard["probabilities"].values()), expected[1], atol=1e-3)


def test_all_forms_of_mlflow_mean_the_same(post: Callable) -> None:
    clips = [GOOD, {"log_mel": spectrogram(1)}]
    expected = post({"inputs": clips})
    assert expected[0] == 200
    assert post({"inputs": clips}, "application/JSON; charset=utf-8") == expected
    assert post({"instances": clips}) == expected
    frame = pd.DataFrame(clips)
    assert post({"dataframe_records": [GOOD | {"log_mel": None}, clips[1]]}) == expected
    split = json.loads(frame.to_json(orient="split", double_precision=15))
    assert post({"dataframe_split": split}) == expected
    loaded = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    for row, name in enumerate(("audio", "log_mel")):
        assert loaded.predict(frame[[name]][row : row + 1]) == expected[1]["predictions"][row : row + 1]
    with pytest.raises(MlflowException, match="clip 0, audio: not base64"):
        loaded.predict(pd.DataFrame({"audio": ["?"]}))


SHAPE = (frame_count(CONFIG), CONFIG.mel_bands)
ZEROS = np.zeros(SHAPE).tolist()


def with_value(text: str) -> bytes:
    """A request whose log-mel has something else among its numbers."""
    return json.dumps({"inputs": [{"log_mel": [["!", *ZEROS[0][1:]], *ZEROS[1:]]}]}).replace('"!"', text).encode()


def audio(content: bytes | str) -> dict[str, Any]:
    return {"inputs": [{"audio": content if isinstance(content, str) else base64.b64encode(content).decode()}]}


def lying_header() -> bytes:
    """A WAV file that says it has far more samples than it has."""
    content = bytearray(base64.b64decode(GOOD["audio"]))
    content[40:44] = b"\xff\xff\xff\x3f"
    return bytes(content)


def bad_requests() -> dict[str, tuple[Any, str]]:
    one_key, one_of_both = "the body must have exactly one key, inputs", "must have exactly one entry, audio or log_mel"
    frames = f"not {SHAPE[0]} frames of {SHAPE[1]} bands"
    many = f"inputs must have 1 to {MAX_CLIPS} clips"
    number = "contains a number that is NaN, infinite or too large"
    values = "the request has more values than"
    return {
        "empty": (b"", "not JSON"),
        "not JSON": (b"{", "not JSON"),
        "binary": (b"\xff\xfe\x00", "not JSON"),
        "bad UTF-8": (b'{"inputs": [{"audio": "\xff"}]}', "not JSON"),
        "half a surrogate": (b'{"inputs": [{"audio": "\\ud800"}]}', "not JSON"),
        "nested lists": (b'{"inputs": ' + b"[" * 10**6, values),
        "nested objects": (b'{"inputs": [{"audio": ' + b'{"a":' * 10**4, "not JSON"),
        "nested log-mel": ({"inputs": [{"log_mel": [[[[[[1]]]]]]}]}, frames),
        "a list": ([GOOD], one_key),
        "null": (b"null", one_key),
        "no key": ({}, one_key),
        "another key": ({"inputs": [GOOD], "params": {}}, one_key),
        "a language model's": ({"messages": [{"role": "user", "content": "x" * 10**6}]}, one_key),
        "two forms": ({"inputs": [GOOD], "instances": [GOOD]}, one_key),
        "many keys": (dict.fromkeys(map(str, range(10**5)), 1), values),
        "columns": ({"inputs": {"audio": [GOOD["audio"]]}}, many),
        "no clip": ({"inputs": []}, many),
        "too many clips": ({"inputs": [GOOD] * (MAX_CLIPS + 1)}, many),
        "millions of clips": ({"inputs": [{}] * 10**6}, values),
        "split without columns": ({"dataframe_split": {"data": [[GOOD["audio"]]]}}, "dataframe_split must have 1 to"),
        "split of lists": ({"dataframe_split": {"columns": [[]], "data": [[1]]}}, "dataframe_split must have 1 to"),
        "uneven split": ({"dataframe_split": {"columns": ["audio"], "data": [["a", "b"]]}}, one_of_both),
        "split of no rows": ({"dataframe_split": {"columns": ["audio"], "data": ["a"]}}, one_of_both),
        "neither": ({"inputs": [{}]}, "clip 0 " + one_of_both),
        "neither, but null": ({"inputs": [{"audio": None}]}, one_of_both),
        "both": ({"inputs": [GOOD, GOOD | {"log_mel": ZEROS}]}, "clip 1 " + one_of_both),
        "unknown name": ({"inputs": [{"sound": "x" * 10**6}]}, one_of_both),
        "no object": ({"inputs": [ZEROS]}, one_of_both),
        "true": ({"inputs": [{"audio": True}]}, "clip 0, audio: not base64"),
        "a number": ({"inputs": [{"audio": 1}]}, "not base64"),
        "not base64": (audio("?" * 10**6), "not base64"),
        "not ASCII": (audio("é🔔"), "not base64"),
        "empty audio": (audio(""), "empty file"),
        "text": (audio(b"/etc/passwd"), "neither WAV, FLAC nor OGG"),
        "a pickle": (audio(pickle.dumps(Bomb())), "neither WAV, FLAC nor OGG"),
        "cut": (audio(base64.b64decode(GOOD["audio"])[:-100]), "truncated"),
        "lying header": (audio(lying_header()), "truncated"),
        "FLAC's name alone": (audio(b"fLaC" + bytes(100)), "truncated: the FLAC header is incomplete"),
        "NaN samples": (audio(encoded(np.full(RATE, np.nan), subtype="FLOAT")), "NaN, infinite"),
        "huge samples": (
            audio(encoded(np.full(RATE, 3e38, np.float32), subtype="FLOAT")),
            "floats must lie in -1..1: they are damaged",
        ),
        "no samples": (audio(encoded(np.zeros(0, np.float32))), "has no samples"),
        "low rate": (audio(encoded(sound(1, 2000), 2000)), "4000"),
        "the second is bad": ({"inputs": [GOOD, {"audio": "?"}]}, "clip 1, audio: not base64"),
        "too long": (audio(encoded(np.zeros((MAX_SECONDS + 1) * 4000), 4000, "FLAC")), "too long"),
        "too long together": (
            {"inputs": [audio(encoded(np.zeros(MAX_SECONDS // 2 * 4000 + 1), 4000, "FLAC"))["inputs"][0]] * 2},
            "clip 1, audio: too long",
        ),
        "too many bytes": (b" " * (MAX_BYTES + 1), f"more than {MAX_BYTES}"),
        "no frames": ({"inputs": [{"log_mel": []}]}, frames),
        "empty frames": ({"inputs": [{"log_mel": [[]] * SHAPE[0]}]}, frames),
        "a frame missing": ({"inputs": [{"log_mel": ZEROS[1:]}]}, frames),
        "a band missing": ({"inputs": [{"log_mel": [row[1:] for row in ZEROS]}]}, frames),
        "an uneven frame": ({"inputs": [{"log_mel": [*ZEROS[1:], [0]]}]}, frames),
        "a batch": ({"inputs": [{"log_mel": [ZEROS]}]}, frames),
        "millions of numbers": (b'{"inputs": [{"log_mel": [[' + b"0," * 4 * 10**6 + b"0]]}]}", values),
        "log-mel as text": ({"inputs": [{"log_mel": "[[0]]"}]}, frames),
        "NaN": (with_value("NaN"), number),
        "infinity": (with_value("-Infinity"), number),
        "a large number": (with_value("1e39"), number),
        "a larger one": (with_value("1e999"), number),
        "a long integer": (with_value("9" * 400), number),
        "too long an integer": (with_value("9" * 5000), "not JSON"),
        "a boolean": (with_value("true"), "contains something other than numbers"),
        "a null": (with_value("null"), "contains something other than numbers"),
        "a numeral": (with_value('"1"'), "contains something other than numbers"),
        "a list in it": (with_value("[1]"), "contains something other than numbers"),
    }


def test_bad_requests_get_a_sentence_and_the_next_one_its_answer(post: Callable, port: int) -> None:
    answer = post({"inputs": [GOOD]})
    assert answer[0] == 200
    requests = {name: (body, "application/json", words) for name, (body, words) in bad_requests().items()}
    for kind in (
        "text/csv",
        "text/plain",
        "application/vnd.apache.parquet",
        "",
        None,
        "application/json-seq",
        "x;" * 999,
    ):
        requests[f"type {kind}"] = ({"inputs": [GOOD]}, kind, "the header Content-Type must be application/json")
    for name, (body, kind, words) in requests.items():
        status, refusal = post(body, kind)
        assert status == 400, (name, refusal)
        assert refusal["error_code"] == "BAD_REQUEST", name
        assert words in refusal["message"], name
        text = json.dumps(refusal, ensure_ascii=False)
        assert text.isprintable(), name
        assert len(text) < 500, name
        assert not re.search(r"Traceback|File \"|/tmp|/etc|\.py\b|xxx|\?\?", text), name
        assert post({"inputs": [GOOD]}) == answer, f"after {name}"
    for half in (
        b"POST /invocations HTTP/1.1\r\nContent-Length: 999\r\nContent-Type: application/json\r\n\r\n{",
        b"\0" * 99,
    ):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(half)
        assert post({"inputs": [GOOD]}) == answer


def test_requests_at_once_get_their_own_answers(post: Callable) -> None:
    bodies = [
        {"inputs": [{"audio": encoded(sound(3, seed=seed))}, {"log_mel": spectrogram(seed)}]} for seed in range(6)
    ]
    bodies[1::2] = [audio("?"), {"inputs": [{"log_mel": ZEROS[1:]}]}, {}]
    expected = [post(body) for body in bodies]
    assert [status for status, _ in expected] == [200, 400] * 3
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, bodies * 8))
    assert answers == expected * 8


def test_what_the_documentation_shows(port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "street.wav", sound(3), RATE)
    (request,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    command = ["bash", "-c", request.replace(":5000/", f":{port}/")]
    shown = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["predictions"][0]
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    lines = [f"{one['start']} {one['end']} {one['tags']} {one['probabilities']}" for one in shown]
    assert capsys.readouterr().out.splitlines() == lines
    assert [(one["start"], one["end"]) for one in shown] == [(0, 2), (1, 3)]


def test_files_and_samples_are_tagged_alike(exported: Path, tmp_path: Path) -> None:
    samples = np.stack([sound(3, 44100), sound(3, 44100, seed=1)], axis=1)
    soundfile.write(tmp_path / "a.wav", samples, 44100, subtype="FLOAT")
    for address in (f"models:/{NAME}@champion", f"models:/{NAME}/1", exported / "float32.onnx"):
        student = iusp.load(address)
        expected = list(student.tag(str(tmp_path / "a.wav")))
        assert [one.start for one in expected] == [0, 1]
        for given in (samples, samples.astype(np.float64).tolist()):
            for one, other in zip(student.tag(given, 44100), expected, strict=True):
                assert (one.start, one.end) == (other.start, other.end)
                assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    assert [one.end for one in student.tag(sound(3), RATE, window=1, hop=1)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("samples", "rate", "reason"),
    [
        ([], RATE, "not an array of floats"),
        (np.zeros(9, np.int16), RATE, "not an array of floats in .* divide int16 by 32768"),
        (np.full(9, 20_000.0), RATE, "samples reach 20000, .* divide integers of 16 bits by 32768"),
        (np.zeros((2, 2, 2)), RATE, "not an array of floats"),
        ([[0.0], [0.0, 1.0]], RATE, "not an array of floats"),
        (np.zeros((2, RATE)), RATE, "(n, channels)"),
        ([0.0, np.nan], RATE, "NaN, infinite"),
        ([1e300], RATE, "NaN, infinite"),
        ([0.0], None, "sample_rate"),
        ([0.0], 2, "sample_rate"),
    ],
)
def test_arrays_that_are_no_recordings_are_refused(samples: Any, rate: Any, reason: str, model: DeviceModel) -> None:
    with pytest.raises(BadAudio, match=reason):
        next(model.tag(samples, rate))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("models:/student", "models:/student: give models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/", "models:/: give"),
        ("models:/a/b/c", "models:/a/b/c: give"),
        ("models:/none@champion", "none: has no version or alias champion"),
        ("no.onnx", "device.json: No such file"),
    ],
)
def test_what_cannot_be_loaded_is_named_in_one_line(address: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        iusp.load(address)
    assert "\n" not in str(error.value)


def test_no_pickle_in_a_version_is_run(uri: str, exported: Path, tmp_path: Path) -> None:
    """Each file of the version is a pickle that would leave a canary behind."""
    canary, bomb = tmp_path / "pwned", pickle.dumps(Bomb())
    torch.save(Bomb(), tmp_path / "bomb.pt")
    hostile = tmp_path / "hostile"
    replaced(exported, hostile / "device", bomb)
    for name in ("extra_files/config.json", "evaluation/measurements.json", "evaluation/predictions.csv"):
        (hostile / name).parent.mkdir(exist_ok=True)
        (hostile / name).write_bytes(bomb)
    shutil.copy(hostile / "evaluation/predictions.csv", hostile / "evaluation/truth.csv")
    shutil.copy(tmp_path / "bomb.pt", hostile / "extra_files/weights.safetensors")
    (hostile / "python_model.pkl").write_bytes(bomb)
    flavor = {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl", "python_version": "3.11"}
    (hostile / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": flavor}}))
    version = add_version(uri, hostile)
    address = f"models:/{NAME}/{version}"
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(merged(params, {"registration": {"model_name": NAME}})))
    client = MlflowClient(uri)
    before = client.get_model_version_by_alias(NAME, "champion").version

    with pytest.raises(InputError, match=f"{address}: device/float32.onnx: not an ONNX file"):
        iusp.load(address)
    for folder in (hostile, hostile / "extra_files", hostile / "device"):
        with pytest.raises(InputError):
            models.load(folder)
    soundfile.write(tmp_path / "a.wav", sound(1), RATE)
    (tmp_path / "scores.csv").write_text("audio_filename,1_engine\na.wav,0.5\n")
    client.set_registered_model_alias(NAME, "champion", str(version))
    try:
        for command, status in (
            (["tag", "a.wav", "--model", address], 2),
            (["tag", "a.wav"], 2),
            (["promote", str(version)], 0),  # it is so already
            (["models", "show", str(version)], 0),
            (["monitor", "scores.csv"], 2),
            (["release", "--to", "s3://models/street"], 2),
        ):
            done = CliRunner().invoke(main, command, env={"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
            assert done.exit_code == status, (command, done.output)
            assert "Traceback" not in done.output
    finally:
        client.set_registered_model_alias(NAME, "champion", before)
    refused = CliRunner().invoke(main, ["promote", str(version)])
    assert refused.exit_code == 1, refused.output
    with pytest.raises(MlflowException, match="pickle is disallowed"):
        mlflow.pyfunc.load_model(address)
    assert not canary.exists()
    pickle.loads(bomb)
    assert canary.exists(), "the pickles were duds"
