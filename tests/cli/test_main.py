"""The command line as people meet it: help, one line for bad input, exit status 2, never a traceback."""

import json
import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from iusp.cli.main import SECTIONS, main
from tests.support.local_servers import environment
from tests.support.project import ROOT, Project, merged

pytestmark = pytest.mark.integration

COMMANDS = ("dataset", "features", "teacher", "student", "evaluation", "registration", "results", "score", "config")
COMMANDS += ("models", "promote", "rollback", "history")
COMMANDS += ("release", "fetch", "monitor")
COMMANDS += ("tag", "executorch", "compare", "recipes", "cut")


def iusp(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["iusp", *arguments], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("iusp: ")
    return lines[0]


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_teaches(command: tuple[str, ...]) -> None:
    done = iusp(*command, "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 5
    if not command:
        assert all(name in done.stdout for name in COMMANDS)


def test_help_lists_every_command_once_under_a_heading() -> None:
    lines = CliRunner().invoke(main, ["--help"], terminal_width=80).stdout.splitlines()
    headings = [number for number, line in enumerate(lines) if line.rstrip(":") in SECTIONS]
    assert [lines[number].rstrip(":") for number in headings] == [
        "Pipeline",
        "Recordings",
        "Results",
        "Registry",
        "Device",
    ]
    listed = [line.split()[0] for line in lines[headings[0] :] if line.startswith("  ") and not line.startswith("   ")]
    assert sorted(listed) == sorted(COMMANDS)
    assert not [line for line in lines[headings[0] :] if line.endswith("...")], "a first sentence is too long"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    shown = CliRunner().invoke(main, [command, "--help"]).stdout
    assert f"Example: iusp {command}" in shown
    assert "  Reads: " in shown
    assert "  Writes: " in shown or "  Prints: " in shown


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run(
        ["python", "-X", "importtime", "-c", "import iusp.cli.main"], env=environment(), capture_output=True, text=True
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "mlflow", "pandas", "numpy", "pydantic", "rich"}


def test_config_prints_what_is_read() -> None:
    printed = json.loads(iusp("config").stdout)
    written = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert printed["dataset"]["clips"] == written["dataset"]["clips"]
    assert set(printed) == set(written)
    assert json.loads(iusp("config", "--schema").stdout)["title"] == "Config"


def test_a_wrong_key_is_one_line(tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["teacher"]["epochs"] = 3
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert "teacher.epochs: no such key" in refused(iusp("dataset", folder=tmp_path))


def test_a_folder_without_params_is_one_line(tmp_path: Path) -> None:
    assert "params.yaml: No such file or directory" in refused(iusp("features", folder=tmp_path))


def test_an_unknown_student_is_one_line() -> None:
    assert "there is no students.tiny; params.yaml has small" in refused(iusp("student", "tiny"))


@pytest.mark.parametrize("step", ["features", "teacher", "student small", "evaluation", "registration", "results"])
def test_a_step_before_its_turn_is_one_line(tmp_path: Path, step: str) -> None:
    project = Project(tmp_path / "project")
    message = refused(iusp(*step.split(), folder=project.folder))
    missing = (
        "models/students/small: no trained student; run the student step" if step == "evaluation" else "no such file"
    )
    assert missing in message.lower()


def test_a_source_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    params = project.params()
    params["dataset"] |= {"source": "folder", "path": "nowhere"}
    project.write_params(params)
    assert refused(iusp("dataset", folder=project.folder)).startswith("iusp: nowhere: no such folder")


def test_an_output_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    (project.folder / "data").write_text("a file where a folder should be")
    assert "data" in refused(iusp("dataset", folder=project.folder))


def stopped_by_mlflow(folder: Path) -> Project:
    """A project whose training logs to MLflow, or ends at once."""
    project = Project(folder / "project")
    project.write_params(merged(project.params(), {"registration": {"outage": "fail"}}))
    (project.folder / "data/dataset").mkdir(parents=True)
    (project.folder / "data/dataset/dataset.json").write_text('{"digest": "d"}')
    return project


def test_an_mlflow_that_is_not_there_is_one_line_without_its_password(tmp_path: Path) -> None:
    project = stopped_by_mlflow(tmp_path)
    done = project.run(
        "iusp",
        "teacher",
        check=False,
        MLFLOW_TRACKING_URI="http://user:secret-word/p@ss@127.0.0.1:9",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )
    assert "MLflow at http://127.0.0.1:9" in refused(done)
    assert "secret-word" not in done.stdout + done.stderr
    assert "p@ss" not in done.stdout + done.stderr


def test_a_database_that_is_none_is_one_line(tmp_path: Path) -> None:
    project = stopped_by_mlflow(tmp_path)
    (project.folder / "mlflow.db").write_bytes(b"no database " * 1000)
    assert "MLflow at sqlite:///mlflow.db" in refused(project.run("iusp", "teacher", check=False))


REGISTRY_COMMANDS = (
    ("models",),
    ("models", "show", "1"),
    ("history",),
    ("promote", "1"),
    ("rollback",),
    ("tag", "street.wav"),
    ("tag", "street.wav", "--model", "models:/iusp-student/1"),
)


@pytest.mark.parametrize("command", REGISTRY_COMMANDS)
def test_a_folder_without_a_registry_stays_as_it_is_and_a_wrong_student_blocks_no_registry_command(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["students"]["small"]["sedes"] = [1]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "no registry: sqlite:///mlflow.db does not exist" in refused(iusp(*command, folder=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(("command", "key"), [("models", "registration.sedes"), ("promote 1", "evaluation.sedes")])
def test_a_section_that_the_command_needs_is_checked(command: str, key: str, tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params[key.partition(".")[0]]["sedes"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert key in refused(iusp(*command.split(), folder=tmp_path))


@pytest.mark.parametrize("content", ["{}", "[]", "{", ""])
def test_what_another_program_wrote_is_one_line(tmp_path: Path, content: str) -> None:
    project = Project(tmp_path / "project")
    for name in ("models/teacher/config.json", "reports/evaluation/metrics.json", "data/dataset/dataset.json"):
        (project.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (project.folder / name).write_text(content)
    assert "metrics.json: not what its step writes" in refused(project.run("iusp", "results", check=False))
    assert "dataset.json: not what its step writes" in refused(project.run("iusp", "teacher", check=False))


def test_score_prints_json_and_refuses_in_one_line(tmp_path: Path) -> None:
    taxonomy = ROOT / "iusp/data/taxonomy.yaml"
    tags = [f"{key}_{name}" for key, name in yaml.safe_load(taxonomy.read_text())["coarse"].items()]
    truth = pd.DataFrame({"split": "validate", "audio_filename": ["a.wav", "b.wav"], "annotator_id": 0})
    for index, tag in enumerate(tags):
        truth[f"{tag}_presence"] = [index % 2, 1 - index % 2]
    truth.to_csv(tmp_path / "annotations.csv", index=False)
    scores = truth[["audio_filename"]].copy()
    for tag in tags:
        scores[tag] = truth[f"{tag}_presence"] * 0.8 + 0.1
    scores.to_csv(tmp_path / "predictions.csv", index=False)
    options = ["--annotations", "annotations.csv", "--taxonomy", os.fspath(taxonomy), "--coarse", "as-published"]
    printed = json.loads(iusp("score", "predictions.csv", *options, folder=tmp_path).stdout)
    assert set(printed) == {"micro_auprc", "micro_f1", "macro_auprc", "classwise", "absent"}
    assert printed["micro_f1"] == 1.0
    assert list(printed["classwise"]) == [str(number) for number in range(1, 9)]
    scores.iloc[:1].to_csv(tmp_path / "predictions.csv", index=False)
    assert "b.wav" in refused(iusp("score", "predictions.csv", *options, folder=tmp_path))
    assert "No such file" in refused(iusp("score", "nothing.csv", *options, folder=tmp_path))
