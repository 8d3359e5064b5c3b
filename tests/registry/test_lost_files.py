"""Registered versions whose files or run are gone, moved projects and deleted experiments, with a real MLflow."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from iusp.cli.main import main
from tests.support.evidence import GOOD, evaluated
from tests.support.project import ROOT, merged

pytestmark = pytest.mark.slow


def client() -> MlflowClient:
    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    # MLflow keeps a connection for each address, and relative ones would be the same in all tests.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")


def configure(folder: Path, experiment: str = "iusp") -> None:
    params = merged(
        yaml.safe_load((ROOT / "params.yaml").read_text()),
        {"registration": {"experiment": experiment}, "evaluation": {"resamples": 100}},
    )
    params["students"] = {"small": {"architecture": "plain", "parameters": 2500, "method": "iusp", "seeds": [0]}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose evaluation step has run."""
    monkeypatch.delenv("IUSP_EXECUTION", raising=False)
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "reports").mkdir()
    configure(folder)
    evaluated(tmp_path / "by-hand", GOOD)
    (tmp_path / "by-hand/dataset").rename(folder / "data/dataset")
    (tmp_path / "by-hand/evaluation").rename(folder / "reports/evaluation")
    device = folder / "reports/evaluation/networks/small-seed-0/model/device"
    device.mkdir()
    (device / "float32.onnx").write_text("network")
    enter(folder, monkeypatch)
    return folder


def iusp(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def good(*arguments: str) -> Result:
    done = iusp(*arguments)
    assert done.exit_code == 0, done.output
    return done


def refused(*arguments: str) -> str:
    done = iusp(*arguments)
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    return line


def versions() -> dict[int, str]:
    found = client().search_model_versions("name = 'iusp-student'")
    return {int(version.version): str(version.source) for version in found}


def mlflow(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "mlflow", *arguments], check=True, capture_output=True)


def run_of(version: int) -> str:
    return str(client().get_model_version("iusp-student", str(version)).run_id)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("collected", [False, True])
def test_a_version_whose_run_is_deleted_is_registered_once_more(collected: bool) -> None:
    good("registration")
    run_id, source = run_of(1), versions()[1]
    client().delete_run(run_id)
    if collected:
        mlflow("gc", "--backend-store-uri", os.environ["MLFLOW_TRACKING_URI"])
    done = good("registration")
    (line,) = done.stderr.splitlines()
    assert "iusp-student version 1" in line
    assert run_id in line
    assert source in line
    assert set(versions()) == {1, 2}
    assert (Path(versions()[2]) / "device/float32.onnx").exists()
    assert client().get_model_version_by_alias("iusp-student", "challenger").version == 2
    # Registered once more, not each time.
    good("registration")
    assert set(versions()) == {1, 2}
    client().delete_model_version("iusp-student", "1")
    assert good("registration").stderr == ""


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("lost", ["", "device", "extra_files/config.json"])
def test_files_that_are_gone_from_a_run_that_exists_are_stored_again(lost: str, tmp_path: Path) -> None:
    good("registration")
    (source,) = versions().values()
    gone = Path(source) / lost
    gone.rename(tmp_path / "elsewhere")
    (line,) = good("registration").stderr.splitlines()
    assert "iusp-student version 1: its files are gone from" in line
    assert "stored again" in line
    assert list(versions()) == [1]
    assert gone.exists()
    assert good("registration").stderr == ""


def test_a_moved_project_never_makes_its_old_folder_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good("registration")
    good("promote", "1")
    moved = project.with_name("elsewhere")
    project.rename(moved)
    enter(moved, monkeypatch)
    for arguments in (("tag", "street.wav", "--model", "models:/iusp-student/1"), ("tag", "street.wav")):
        line = refused(*arguments)
        assert f"no files in {project}/mlruns" in line
        assert "move it back" in line
    line = refused("registration")
    assert f"{project}/mlruns" in line
    assert "registration.experiment" in line
    assert not project.exists()
    # The first way out: the old path leads to the new folder.
    project.symlink_to(moved)
    assert good("registration").stderr == ""
    assert list(versions()) == [1]
    # The second one: another experiment, whose files are kept in the new folder.
    project.unlink()
    configure(moved, "moved")
    (line,) = good("registration").stderr.splitlines()
    assert f"its files are gone from {project}/mlruns" in line
    assert set(versions()) == {1, 2}
    assert versions()[2].startswith(f"{moved}/mlruns")
    assert not project.exists()


def test_a_missing_folder_of_artifacts_within_the_project_is_made(project: Path) -> None:
    good("registration")
    shutil.rmtree(project / "mlruns")
    good("registration")
    assert list(versions()) == [1]
    assert (Path(versions()[1]) / "device/float32.onnx").exists()


@pytest.mark.usefixtures("project")
def test_a_deleted_experiment_is_named_with_the_way_out() -> None:
    good("registration")
    experiment = client().get_experiment_by_name("iusp")
    assert experiment
    client().delete_experiment(experiment.experiment_id)
    line = refused("registration")
    command = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
    assert command in line
    assert "MLFLOW_TRACKING_URI" not in line
    mlflow(*command.split()[1:])
    good("registration")


@pytest.mark.usefixtures("project")
def test_a_deleted_parent_run_is_replaced_for_all_its_steps() -> None:
    good("registration")
    experiment = client().get_experiment_by_name("iusp")
    assert experiment

    def runs(step: str) -> list[str]:
        where = [experiment.experiment_id], f"tags.`iusp.step` = '{step}'"
        return [run.data.tags.get("mlflow.parentRunId", run.info.run_id) for run in client().search_runs(*where)]

    (old,) = runs("pipeline")
    client().delete_run(old)
    good("registration")
    (new,) = runs("pipeline")
    assert runs("teacher") == runs("small-seed-0") == [new] != [old]
