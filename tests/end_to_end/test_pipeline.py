"""The whole pipeline as a user runs it: real DVC, real MLflow on sqlite, real processes, small settings."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from tests.support.local_servers import environment
from tests.support.project import STEPS, STUDENTS, Project, ran

pytestmark = pytest.mark.slow

# Measured, named by MLflow, or made from such.
NOT_REPRODUCED = {"latency.json", "measurements.json", "comparison.md", "report.html", "registration.json"}
NOT_REPRODUCED |= {"MLmodel"}


def contents(project: Project) -> dict[str, str]:
    return {
        str(path.relative_to(project.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for top in ("data", "models", "reports")
        for path in sorted((project.folder / top).rglob("*"))
        if path.is_file() and path.name not in NOT_REPRODUCED and path.name != ".gitignore"
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("repro") / "project")
    project.commit()
    project.run("dvc", "repro")
    project.run("git", "add", "dvc.lock")
    project.run("git", "commit", "--quiet", "--message", "first")
    return project


@pytest.fixture(scope="module")
def client(project: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")


def test_results_show_every_network_and_its_version(project: Project) -> None:
    shown = project.run("iusp", "results").stdout
    metrics = json.loads((project.folder / "reports/evaluation/metrics.json").read_text())
    registered = json.loads((project.folder / "reports/registration.json").read_text())
    for name, network in {"teacher": metrics["teacher"], **metrics["students"]}.items():
        line = next(line for line in shown.splitlines() if re.search(rf"│ {name} ", line))
        coarse = network["coarse"]
        assert (
            f"{coarse['micro_auprc']:.3f} [{coarse['micro_auprc_low']:.3f}, {coarse['micro_auprc_high']:.3f}]" in line
        )
        assert f"{network['parameters']:,}" in line
        assert coarse["micro_auprc_low"] <= coarse["micro_auprc"] <= coarse["micro_auprc_high"]
        if name in registered["versions"]:
            assert re.search(rf" {registered['versions'][name]}( \(challenger\))? +│", line)
    assert "report.html" in shown


def test_report_needs_no_network(project: Project) -> None:
    report = (project.folder / "reports/evaluation/report.html").read_text()
    assert report.count("data:image/png;base64,") == 4
    assert not re.search(r"(src|href)=\"(?!data:)", report)


def test_slices_are_of_the_clips_that_are_reported_on(project: Project) -> None:
    evaluation = project.folder / "reports/evaluation"
    slices = pd.read_csv(evaluation / "slices.csv")
    assert set(slices["by"]) == {"sensor_id"}
    assert slices.groupby("network")["clips"].sum().to_dict() == dict.fromkeys(("teacher", "small", "other"), 20)
    # None of the few clips' sensors has enough of them.
    assert f"{slices['group'].nunique()} of them are too small to be scored" in (evaluation / "report.html").read_text()


def test_repeating_does_nothing(project: Project) -> None:
    assert ran(project.run("dvc", "repro").stdout) == []


def test_mlflow_has_the_numbers_that_dvc_shows(project: Project, client: MlflowClient) -> None:
    shown = json.loads(project.run("dvc", "metrics", "show", "--json").stdout)
    (files,) = [one["data"] for one in shown.values()]
    metrics = files["reports/evaluation/metrics.json"]["data"]
    experiment = client.get_experiment_by_name("iusp")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id], max_results=100)}
    (parent,) = [run for name, run in runs.items() if name.startswith("pipeline")]
    assert set(runs) - {parent.info.run_name} == {
        "dataset",
        "features",
        "teacher",
        "small-seed-0",
        "small-seed-1",
        "other-seed-0",
        "evaluation",
        "registration",
    }
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        if run is not parent:
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id, name
    assert runs["teacher"].data.metrics["coarse.micro_auprc"] == metrics["teacher"]["coarse"]["micro_auprc"]
    evaluation = runs["evaluation"].data.metrics
    for name, student in metrics["students"].items():
        assert evaluation[f"students.{name}.coarse.micro_auprc"] == student["coarse"]["micro_auprc"]
        for seed, value in student["seeds"].items():
            assert runs[f"{name}-seed-{seed}"].data.metrics["coarse.micro_auprc"] == value
    record = pd.read_csv(project.folder / "models/students/other/seed-0/record.csv")
    assert {"loss_labels", "loss_sp", "loss_kd", "validate_micro_auprc"} <= set(record)
    for name in record.columns:
        history = client.get_metric_history(runs["other-seed-0"].info.run_id, name)
        logged = {one.step: one.value for one in history if one.step > 0}
        assert len(history) == len(record), f"{name} is there once for each epoch"
        assert [logged[step] for step in sorted(logged)] == record[name].tolist()
    assert "iusp.data" in parent.data.tags
    assert "mlflow.source.git.commit" in parent.data.tags


def test_registered_students_load_without_pickle_and_predict_the_same(
    project: Project, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.chdir(project.folder)
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    registered = json.loads((project.folder / "reports/registration.json").read_text())
    metrics = json.loads((project.folder / "reports/evaluation/metrics.json").read_text())
    assert set(registered["versions"]) == set(STUDENTS)
    log_mel = np.load(project.folder / "data/features/test.npy").astype(np.float32)
    for name, number in registered["versions"].items():
        version = client.get_model_version("iusp-student", str(number))
        student = metrics["students"][name]
        assert version.tags["method"] == student["method"]
        assert float(version.tags["micro_auprc"]) == student["coarse"]["micro_auprc"]
        model = mlflow.pyfunc.load_model(f"models:/iusp-student/{number}")
        predictions = pd.read_csv(
            project.folder / f"reports/evaluation/predictions/{name}-seed-{student['best_seed']}.csv"
        )
        for batch in (1, 3):
            answers = model.predict(pd.DataFrame({"log_mel": log_mel[:batch].tolist()}))
            probabilities = pd.DataFrame([windows[0]["probabilities"] for windows in answers])
            pd.testing.assert_frame_equal(probabilities, predictions.iloc[:batch, 1:], atol=1e-5)
    best = max(metrics["students"], key=lambda name: max(metrics["students"][name]["validate_micro_auprc"].values()))
    challenger = client.get_model_version_by_alias("iusp-student", "challenger")
    assert int(challenger.version) == registered["versions"][best] == registered["versions"][registered["challenger"]]
    assert not list((project.folder / "mlruns").rglob("*.pkl"))


def test_registering_again_adds_no_version_and_doubles_nothing(project: Project, client: MlflowClient) -> None:
    before = client.search_model_versions("name = 'iusp-student'")
    again = json.loads((project.folder / "reports/registration.json").read_text())
    project.run("iusp", "registration")
    assert len(client.search_model_versions("name = 'iusp-student'")) == len(before) == 2
    assert json.loads((project.folder / "reports/registration.json").read_text()) == again
    run = client.search_runs([client.get_experiment_by_name("iusp").experiment_id], "attributes.run_name = 'teacher'")[
        0
    ]
    assert len(client.get_metric_history(run.info.run_id, "loss_labels")) == 3
    assert len(client.get_metric_history(run.info.run_id, "coarse.micro_auprc")) == 1


def test_one_knob_runs_what_depends_on_it(project: Project) -> None:
    whole = project.params()
    changed = json.loads(json.dumps(whole))
    changed["students"]["other"]["seeds"] = [1]
    project.write_params(changed)
    assert ran(project.run("dvc", "repro").stdout) == ["recipes", "student@other", "evaluation", "registration"]
    project.write_params(whole)
    assert ran(project.run("dvc", "repro").stdout) == []  # taken from DVC's cache


def test_an_experiment_with_another_method(project: Project) -> None:
    done = project.run("dvc", "exp", "run", "--set-param", "students.small.method=kd")
    assert ran(done.stdout) == ["recipes", "student@small", "evaluation", "registration"]
    difference = json.loads(project.run("dvc", "params", "diff", "--json").stdout)["params.yaml"]
    assert difference == {"students.small.method": {"old": "iusp", "new": "kd"}}
    numbers = json.loads(project.run("dvc", "metrics", "diff", "--json").stdout)
    changed = numbers["reports/evaluation/metrics.json"]
    assert changed["students.small.coarse.micro_auprc"]["old"] != changed["students.small.coarse.micro_auprc"]["new"]
    assert not any(name.startswith("students.other.coarse") for name in changed)
    plots = project.run("dvc", "plots", "show", "--json").stdout
    assert "validate_micro_auprc" in plots
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout")


def test_two_runs_give_the_same_bytes(project: Project, undisturbed: Project) -> None:
    assert contents(undisturbed) == contents(project)


# What shows that a step is in the midst of its work: a file that it has written into its work folder.
MIDST = {
    "dataset": "data/.dataset.work-*/source/audio/*.flac",
    "features": "data/.features.work-*/parts/*.npy",
    "teacher": "models/.teacher.work-*/checkpoint.pt",
    "student": "models/students/.small.work-*/seed-0/checkpoint.pt",
    "evaluation": "reports/.evaluation.work-*/predictions/teacher.csv",
}


@pytest.mark.parametrize("step", [step for step in STEPS if step[0] in MIDST and step[-1] != "other"])
def test_a_killed_step_repeated_gives_the_same_bytes(
    undisturbed: Project, tmp_path: Path, step: tuple[str, ...]
) -> None:
    project = Project(tmp_path / "project")
    shutil.copytree(undisturbed.folder, project.folder, dirs_exist_ok=True)
    output = {"dataset": "data/dataset", "features": "data/features", "teacher": "models/teacher"}.get(step[0])
    output = output or {"student": "models/students/small", "evaluation": "reports/evaluation"}[step[0]]
    shutil.rmtree(project.folder / output)
    process = subprocess.Popen(
        ["iusp", *step],
        cwd=project.folder,
        env=environment() | {"PYTHONPATH": str(project.folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not list(project.folder.glob(MIDST[step[0]])):
        assert process.poll() is None, "the step ended before it could be killed"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (project.folder / output).exists(), "a half-written output looks whole"
    project.run("iusp", *step)
    assert contents(project) == contents(undisturbed)
    assert not list(project.folder.rglob(".*.work-*"))


def test_an_unpacked_archive_needs_no_git(make_project: object) -> None:
    project = make_project("archive")  # type: ignore[operator]
    (project.folder / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    assert ran(project.run("dvc", "repro", "features").stdout) == ["dataset", "features"]
