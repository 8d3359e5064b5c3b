"""`iusp executorch`: programs say of recordings what PyTorch says; without the extra, one line tells what to do."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from iusp import models
from iusp.device.executorch import BATCH, NET, WHOLE, open_program, write_programs
from iusp.errors import InputError
from iusp.io.files import sha256, write_json
from tests.support.exported import CONFIG, TAGS, network, normalised, recordings
from tests.support.local_servers import environment


def registered(folder: Path, architecture: str, tagger: models.Tagger) -> Path:
    """What of a registered version is read."""
    config = {
        "architecture": architecture,
        "width": models.ARCHITECTURES[architecture].WIDTHS[0],
        "tags": TAGS,
        "features": CONFIG.model_dump(mode="json"),
    }
    models.save(folder / "extra_files", tagger, config)
    thresholds = dict(zip(TAGS, [0.25, 0.5, 0.75], strict=True))
    write_json(folder / "device" / "device.json", {"thresholds": thresholds, "license": "Apache-2.0"})
    (folder / "device" / "LICENSE").write_text("free\n")
    return folder


@pytest.mark.executorch
@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_every_family_says_the_same_of_recordings(architecture: str, tmp_path: Path) -> None:
    clips, spectrograms = recordings(BATCH)
    tagger = normalised(architecture, spectrograms)
    programs = write_programs(registered(tmp_path / "model", architecture, tagger), tmp_path / "out")
    with torch.inference_mode():
        ours = tagger(spectrograms)[0].sigmoid().numpy()
    assert np.ptp(ours, axis=0).max() > 1e-2, "the network tells the clips apart"
    for name, given in ((NET, spectrograms), (WHOLE, clips)):
        program = open_program(tmp_path / "out" / name)
        for count in (1, 3, BATCH):
            got = program.execute([given[:count]])[0]
            np.testing.assert_allclose(got.numpy(), ours[:count], atol=1e-4)
        content = (tmp_path / "out" / name).read_bytes()
        for heavy in (b"aten::convolution", b"aten::addmm", b"aten::mm", b"aten::bmm", b"aten::linear"):
            assert heavy not in content, "XNNPACK has not taken it"
        assert programs[name].delegated > 0
        assert programs[name].max_difference <= 1e-4


@pytest.mark.executorch
def test_the_champion_is_exported_with_what_describes_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri()))
    client.create_registered_model("student")
    client.log_artifacts(run.info.run_id, str(registered(tmp_path / "model", "plain", network("plain"))), "student")
    client.create_model_version("student", f"{run.info.artifact_uri}/student", run.info.run_id)
    client.set_registered_model_alias("student", "champion", "1")
    command = [sys.executable, "-m", "iusp", "executorch", "--model", "models:/student@champion", "--to"]
    for folder in ("one", "two"):
        done = subprocess.run(
            [*command, folder],
            cwd=tmp_path,
            env=environment() | {"MLFLOW_TRACKING_URI": uri},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        net, whole = done.stdout.splitlines()
        assert net.startswith(f"{folder}/net.pte: ")
        assert whole.startswith(f"{folder}/float32.pte: ")
    one, two = tmp_path / "one", tmp_path / "two"
    description = json.loads((one / "device.json").read_text())
    assert (description["tags"], description["thresholds"]["8_dog"]) == (TAGS, 0.75)
    assert description["features"] == CONFIG.model_dump(mode="json")
    assert (
        set(description["files"]) == {NET, WHOLE, "LICENSE"} == {path.name for path in one.iterdir()} - {"device.json"}
    )
    for name, known in description["files"].items():
        assert known["sha256"] == sha256(one / name) == sha256(two / name), "same model, same bytes"
        assert str(tmp_path).encode() not in (one / name).read_bytes(), "a file names the machine that wrote it"


@pytest.mark.executorch
def test_a_program_that_says_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = registered(tmp_path / "model", "plain", network("plain"))
    monkeypatch.setattr("iusp.device.executorch.TOLERANCE", -1.0)
    with pytest.raises(InputError, match=r"net\.pte: differs from PyTorch"):
        write_programs(model, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_without_the_extra_one_line_says_what_to_install(tmp_path: Path) -> None:
    model = registered(tmp_path / "model", "plain", network("plain"))
    hidden = "import sys; sys.modules['executorch'] = None; from iusp.cli.main import main; main()"
    command = [sys.executable, "-c", hidden, "executorch", "--model", str(model), "--to", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("iusp: ExecuTorch is not installed")
    assert "make executorch" in line
    assert not (tmp_path / "out").exists()
