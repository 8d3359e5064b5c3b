"""Long recordings are cut into clips, and nothing of them is lost."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from click.testing import CliRunner

from iusp.cli.main import main
from iusp.data.labels import derive_labels, read_annotations
from iusp.errors import InputError
from iusp.reporter import Reporter
from iusp.sources.cut import cut
from tests.support.datasets import RATE, TAXONOMY, config, ingest, make, row
from tests.support.files import tree

pytestmark = pytest.mark.integration


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        *(row("long.wav", annotator=annotator, heard=["1-1"]) for annotator in (1, 2)),
        row("short.flac", heard=["8-1"]),
        row("stereo.wav", "validate", 0, heard=["2-1"]),
        row("loud.wav"),
        row("gone.wav"),
        row("bad.wav"),
    ]
    folder = make(tmp_path / "data", rows, ["audio/short.flac"])
    rng = np.random.default_rng(0)
    soundfile.write(folder / "audio/long.wav", 0.1 * rng.standard_normal(7 * RATE), RATE, subtype="PCM_24")
    (folder / "audio/deep").mkdir()
    soundfile.write(folder / "audio/deep/stereo.wav", 0.1 * rng.standard_normal((4 * 44_100, 2)), 44_100)
    soundfile.write(folder / "audio/loud.wav", rng.uniform(-3, 3, 5 * RATE), RATE, subtype="FLOAT")
    (folder / "audio/bad.wav").write_bytes((folder / "audio/long.wav").read_bytes()[:-5000])
    return folder


def samples(path: Path) -> np.ndarray:
    values: np.ndarray = soundfile.read(path, always_2d=True)[0].mean(axis=1)
    return values


def test_clips_are_the_recording(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "clips"
    assert cut(folder, output, 2, Reporter()) == (6, 4 + 1 + 2 + 3 + 1)
    audio = output / "audio"
    for name, rate, count, tolerance in (
        ("long", RATE, 4, 1e-6),
        ("deep/stereo", 44_100, 2, 1e-6),
        ("loud", RATE, 3, 1e-6),
    ):
        whole = samples(folder / f"audio/{name}.wav")
        parts = [samples(path) for path in sorted(audio.glob(f"{Path(name).name}_*"))]
        starts = [*range(0, 2 * (count - 1) * rate, 2 * rate), len(whole) - 2 * rate]
        assert [len(part) for part in parts] == [2 * rate] * count
        for start, part in zip(starts, parts, strict=True):
            np.testing.assert_allclose(part, whole[start:][: 2 * rate], atol=tolerance)
    assert (audio / "short.flac").read_bytes() == (folder / "audio/short.flac").read_bytes()
    assert (audio / "bad.wav").read_bytes() == (folder / "audio/bad.wav").read_bytes()
    assert not list(audio.glob("bad_*"))


def test_each_clip_has_the_labels_of_its_recording(folder: Path, tmp_path: Path) -> None:
    cut(folder, tmp_path / "clips", 2, Reporter())
    before, after = (
        derive_labels(read_annotations(place / "annotations.csv", TAXONOMY), TAXONOMY, "any", "from-fine")
        for place in (folder, tmp_path / "clips")
    )
    for name, found in after.set_index("audio_filename").iterrows():
        recording = str(name).rpartition("_")[0] or str(name).partition(".")[0]
        (expected,) = [one for _, one in before.iterrows() if one["audio_filename"].partition(".")[0] == recording]
        pd.testing.assert_series_equal(found, expected.drop("audio_filename"), check_names=False)
    summary = ingest(config(tmp_path / "clips", max_bad_share=0.5), tmp_path / "out")
    assert summary.clips == {"train": 4 + 1 + 3, "validate": 2, "test": 0}
    assert summary.missing.names == ["gone.wav"]


def test_the_command(folder: Path, tmp_path: Path) -> None:
    before = tree(folder)
    arguments = ["cut", str(folder), str(tmp_path / "clips"), "--seconds", "2"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == f"{tmp_path / 'clips'}: 11 clips of 6 recordings"
    assert tree(folder) == before
    again = CliRunner().invoke(main, arguments)
    assert (again.exit_code, again.stderr) == (2, f"iusp: {tmp_path / 'clips'}: exists; name a new folder\n")


def test_refusals_leave_nothing(folder: Path, tmp_path: Path) -> None:
    for output in (folder / "audio/clips", folder):
        with pytest.raises(InputError, match=r"write elsewhere|exists"):
            cut(folder, output, 2, Reporter())
    clash = make(tmp_path / "clash", [row("a.wav"), row("a.flac")], ["audio/a.flac"])
    for name in ("a.wav", "a.flac"):
        soundfile.write(clash / "audio" / name, np.zeros(5 * RATE), RATE)
    with pytest.raises(InputError, match=r"a\.wav and a\.flac would both become a_000\.flac; rename one"):
        cut(clash, tmp_path / "out", 2, Reporter())
    assert not (tmp_path / "out").exists()
