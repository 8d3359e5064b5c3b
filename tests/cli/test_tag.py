"""`iusp tag`: recordings as people have them, on the command line, without torch."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr
from mlflow import MlflowClient

from iusp.data import audio
from iusp.data.resampling import waveform
from iusp.device.runtime import DeviceModel, load
from iusp.errors import InputError
from iusp.io.files import write_json
from tests.support.audio_files import encoded, flac_claiming, patched
from tests.support.exported import TAGS
from tests.support.local_servers import environment

pytestmark = pytest.mark.integration

RATE = 16000


def sound(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """Noise up to half the rate that comes and goes."""
    count = round(seconds * rate)
    noise = np.random.default_rng(seed).normal(size=count)
    return (noise * np.abs(np.sin(np.arange(count) / rate)) / 10).astype(np.float32)


@pytest.fixture(scope="module")
def model(exported: Path) -> DeviceModel:
    return load(exported / "float32.onnx")


def iusp(*arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "iusp", "tag", *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("seconds", "starts"), [(0.3, [0]), (2, [0]), (2.1, [0, 1]), (3, [0, 1]), (5.5, [0, 1, 2, 3, 4])]
)
def test_windows_reach_the_end_and_no_further(
    seconds: float, starts: list[int], model: DeviceModel, tmp_path: Path
) -> None:
    samples = sound(seconds, RATE)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    windows = list(model.tag(tmp_path / "a.wav", window=2, hop=1))
    assert [one.start for one in windows] == starts
    assert windows[-1].end == seconds
    for one in windows:
        clip = samples[int(one.start * RATE) :][: model.samples]
        clip = np.pad(clip, (0, model.samples - len(clip)))
        expected = model.probabilities(clip[None])[0]
        np.testing.assert_allclose(list(one.probabilities.values()), expected, atol=1e-5)
        assert one.tags == [tag for tag, value in zip(TAGS, expected, strict=True) if value >= model.thresholds[tag]]


def test_any_container_rate_and_number_of_channels(model: DeviceModel, tmp_path: Path) -> None:
    samples = sound(4, 48000)
    expected = None
    for rate, channels, suffix in ((48000, 1, "wav"), (44100, 2, "flac"), (48000, 6, "wav"), (32000, 1, "ogg")):
        other = soxr.resample(samples, 48000, rate)
        path = tmp_path / f"{rate}-{channels}.{suffix}"
        soundfile.write(path, np.stack([other] * channels, axis=1), rate)
        got = [list(one.probabilities.values()) for one in model.tag(path, window=2, hop=1)]
        expected = expected or got
        np.testing.assert_allclose(got, expected, atol=0.05)


def test_memory_is_bounded(model: DeviceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "BLOCK_VALUES", 4096)
    soundfile.write(tmp_path / "a.flac", np.stack([sound(30, 44100)] * 2, axis=1), 44100)
    blocks = [len(block) for block in waveform(tmp_path / "a.flac", RATE)]
    assert sum(blocks) == 30 * RATE
    assert max(blocks) < 3000
    assert len(list(model.tag(tmp_path / "a.flac", window=2, hop=2))) == 15


@pytest.mark.parametrize(("window", "hop"), [(3, 1), (2, 0), (1, 2), (-1, -1), (float("nan"), 1)])
def test_windows_that_do_not_fit_are_refused(window: float, hop: float, model: DeviceModel, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(1, RATE), RATE)
    with pytest.raises(InputError, match="0 < hop <= window <= 2 s must hold"):
        next(model.tag(tmp_path / "a.wav", window=window, hop=hop))


def test_a_folder_goes_on_past_bad_files(exported: Path, tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    (recordings / "below").mkdir(parents=True)
    soundfile.write(recordings / "a.wav", sound(3, RATE), RATE)
    soundfile.write(recordings / "below" / "z.flac", sound(1, 22050), 22050)
    (recordings / "b.wav").write_bytes(b"RIFF")
    soundfile.write(recordings / "c.wav", np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    (recordings / "notes.txt").write_text("no recording")
    options = ["--model", str(exported / "int8.onnx"), "--window", "2", "--hop", "1"]
    done = iusp(str(recordings), *options, "--json")
    assert done.returncode == 2
    errors = done.stderr.decode().splitlines()
    assert len(errors) == 2
    assert "b.wav: not audio" in errors[0]
    assert "c.wav: a sample is NaN" in errors[1]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(Path(row["recording"]).name, row["start"], row["end"]) for row in rows] == [
        ("a.wav", 0, 2),
        ("a.wav", 1, 3),
        ("z.flac", 0, 1),
    ]
    assert all(set(row["probabilities"]) == set(TAGS) and set(row["tags"]) <= set(TAGS) for row in rows)
    table = pd.read_csv(io.BytesIO(iusp(str(recordings), *options, "--csv").stdout))
    assert list(table) == ["audio_filename", *TAGS]
    assert table["audio_filename"].tolist() == ["a.wav", "a.wav", "z.flac"]
    assert table[TAGS].to_dict("records") == [row["probabilities"] for row in rows]
    shown = iusp(str(recordings / "a.wav"), *options)
    assert shown.returncode == 0
    assert len(shown.stdout.splitlines()) == 3
    piped = iusp("-", *options, "--json", input=(recordings / "a.wav").read_bytes())
    assert [json.loads(line)["probabilities"] for line in piped.stdout.splitlines()] == [
        row["probabilities"] for row in rows[:2]
    ]


def test_pipes_of_other_programs_are_tagged(exported: Path, tmp_path: Path) -> None:
    samples = sound(3, RATE)
    plain = encoded(samples, RATE)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    options = ["--model", str(exported / "int8.onnx"), "--window", "2", "--hop", "1", "--json"]

    def windows(*arguments: str, **piped: object) -> list[dict[str, object]]:
        done = iusp(*arguments, *options, **piped)
        assert (done.returncode, done.stderr) == (0, b"")
        return [json.loads(line) | {"recording": "-"} for line in done.stdout.splitlines()]

    expected = windows(str(tmp_path / "a.wav"))
    assert [(row["start"], row["end"]) for row in expected] == [(0, 2), (1, 3)]
    for size in (0xFFFFFFFF, 0x80000000, 0x7FFFF000):  # ffmpeg, arecord, SoX
        assert windows("-", input=patched(patched(plain, 40, "<I", size), 4, "<I", size)) == expected
    assert windows("-", input=flac_claiming(encoded(samples, RATE, "FLAC"), 0)) == expected


def test_a_folder_names_the_audio_that_it_skips(exported: Path, tmp_path: Path) -> None:
    recordings, disk = tmp_path / "recordings", tmp_path / "disk"
    recordings.mkdir()
    disk.mkdir()
    soundfile.write(disk / "a.wav", sound(1, RATE), RATE)
    (recordings / "linked").symlink_to(disk)
    (recordings / "circle").symlink_to(recordings)
    for number in range(4):
        (recordings / f"{number}.mp3").write_bytes(encoded(sound(1, RATE), RATE, "MP3"))
    for name in ("notes.txt", "list.json", ".hidden.mp3"):
        (recordings / name).write_text("no recording")
    options = ["--model", str(exported / "int8.onnx"), "--json"]
    done = iusp(str(recordings), *options)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        f"iusp: {recordings}: skipped 4 in other audio formats (0.mp3, 1.mp3, 2.mp3 and 1 more); convert to WAV, FLAC "
        "or OGG"
    ]
    assert {json.loads(line)["recording"] for line in done.stdout.splitlines()} == {str(recordings / "linked/a.wav")}
    done = iusp(str(recordings / "0.mp3"), *options)
    assert done.stderr.decode() == f"iusp: {recordings / '0.mp3'}: an MP3 file: convert it to WAV, FLAC or OGG\n"


@pytest.mark.parametrize("recordings", ["nothing.wav", "empty"])
def test_nothing_to_tag_is_one_line(recordings: str, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = iusp(str(tmp_path / recordings), "--model", str(exported / "int8.onnx"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_an_onnx_file_needs_neither_torch_nor_mlflow(exported: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(1, 44100), 44100)
    code = (
        "import sys; from iusp.cli.main import main\n"
        f"sys.argv = ['iusp', 'tag', 'a.wav', '--model', {os.fspath(exported / 'float32.onnx')!r}, '--hop', '3']\n"
        "try: main()\n"
        "except SystemExit as status: print(status.code, *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    status, *modules = done.stdout.splitlines()[-1].split()
    assert status == "2", "the hop is longer than the window"
    assert "onnxruntime" in modules
    assert not set(modules) & {"torch", "mlflow", "onnx", "pandas", "scipy", "pydantic"}


def test_a_registered_champion_is_fetched(
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
    client.create_registered_model("student")
    for number in (1, 2):
        run = client.create_run(experiment)
        model_folder = tmp_path / f"model-{number}"
        write_json(model_folder / "some.json", {})
        if number == 2:
            shutil.copytree(exported, model_folder / "device")
        client.log_artifacts(run.info.run_id, str(model_folder), "student")
        client.create_model_version("student", f"{run.info.artifact_uri}/student", run.info.run_id)
    client.set_registered_model_alias("student", "champion", "2")
    soundfile.write(tmp_path / "a.wav", sound(1, RATE), RATE)
    options = ["--model", "models:/student@champion", "--window", "2", "--hop", "1"]
    command = [sys.executable, "-m", "iusp", "tag", "a.wav", *options]
    env = environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a.wav")
    for model, words in (
        ("models:/student/1", "student version 1: has no artifact device"),
        ("models:/student@nobody", "student: has no version or alias nobody"),
        ("models:/student", "models:/student: give models:/NAME@ALIAS"),
    ):
        done = subprocess.run([*command[:-5], model], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert words in done.stderr
