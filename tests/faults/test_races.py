"""The same thing started twice at once: it is done once, and whoever cannot join in is told so."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient

from iusp.registry.versions import register
from iusp.reporter import Reporter
from tests.support.local_servers import mlflow_server
from tests.support.project import Project, Tried, merged
from tests.support.workspace import (
    COMMANDS,
    OUTPUTS,
    await_work,
    contents,
    copied,
    new_project,
    registered,
    start,
)

RUNS, THREADS = 3, 8


@pytest.mark.parametrize("step", [step for step in COMMANDS if step != "registration"])
def test_of_two_runs_of_a_step_in_one_folder_the_second_is_told_so(
    undisturbed: tuple[Project, dict[str, float]], tmp_path: Path, step: str, tried: Tried
) -> None:
    whole, _ = undisturbed
    project = copied(whole, tmp_path / "project", step)
    first = start(project, *COMMANDS[step])
    await_work(first, step)
    os.killpg(first.pid, signal.SIGSTOP)  # so that the second comes while the first is at work
    second = project.run(*COMMANDS[step], check=False)
    os.killpg(first.pid, signal.SIGCONT)
    assert second.returncode == 2
    assert "another run of this step is using it; run again when that run has ended" in second.stderr
    assert "Traceback" not in second.stderr
    assert first.wait() == 0
    assert contents(project.folder, *OUTPUTS[step]) == contents(whole.folder, *OUTPUTS[step])
    tried(
        f"`{' '.join(COMMANDS[step])}` starts in a folder while another run of this step in the folder is paused",
        1,
        "the new run stops with an error; the other run succeeds",
    )


def test_of_two_dvc_repro_in_one_workspace_the_second_is_told_so(
    undisturbed: tuple[Project, dict[str, float]], tmp_path: Path, tried: Tried
) -> None:
    whole, _ = undisturbed
    project = new_project(tmp_path / "project")
    first = start(project, "dvc", "repro")
    await_work(first, "features")
    os.killpg(first.pid, signal.SIGSTOP)
    second = project.run("dvc", "repro", check=False)
    os.killpg(first.pid, signal.SIGCONT)
    assert second.returncode != 0
    assert "is busy, it is being blocked by" in second.stderr
    assert first.wait() == 0
    assert "Running stage" not in project.run("dvc", "repro").stdout
    assert contents(project.folder) == contents(whole.folder)
    assert registered(f"sqlite:///{project.folder}/mlflow.db") == registered(f"sqlite:///{whole.folder}/mlflow.db")
    tried(
        "`dvc repro` starts in a workspace while another `dvc repro` in the workspace is paused",
        1,
        "the new run stops with an error; the other run succeeds",
    )


def register_at_once(projects: list[Project], **extra: str) -> None:
    running = [start(project, *COMMANDS["registration"], **extra) for project in projects]
    told = [(process.communicate()[0], process.returncode) for process in running]
    assert all(status == 0 or (status == 2 and "Traceback" not in said) for said, status in told), told
    # Whoever was told to is run again.
    for project, (_, status) in zip(projects, told, strict=True):
        if status:
            project.run(*COMMANDS["registration"], **extra)


def test_registrations_at_once_register_once(
    undisturbed: tuple[Project, dict[str, float]], tmp_path: Path, tried: Tried
) -> None:
    whole, _ = undisturbed
    with mlflow_server(tmp_path) as uri:
        projects = [copied(whole, tmp_path / f"{number}", "registration") for number in range(RUNS)]
        register_at_once(projects, MLFLOW_TRACKING_URI=uri)
        assert registered(uri) == registered(f"sqlite:///{whole.folder}/mlflow.db")
        tried(
            f"{RUNS} runs of `iusp registration` with the same results start at the same time on one server",
            RUNS,
            "MLflow has one version",
        )


def with_results(whole: Project, folder: Path, number: int) -> Project:
    """A copy before registration, of other settings, and so another execution, with another student and metrics."""
    project = copied(whole, folder, "registration")
    project.write_params(merged(project.params(), {"evaluation": {"resamples": 100 + number}}))
    evaluation = project.folder / "reports/evaluation"
    metrics = json.loads((evaluation / "metrics.json").read_text())
    for numbers in (metrics["teacher"], metrics["students"]["small"]):
        numbers["coarse"]["micro_auprc"] += number / 1000
    (evaluation / "metrics.json").write_text(json.dumps(metrics))
    for path in evaluation.glob("networks/small-seed-*/model/extra_files/config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"number": number}))
    return project


def test_registrations_at_once_of_other_results_register_each(
    undisturbed: tuple[Project, dict[str, float]], tmp_path: Path, tried: Tried
) -> None:
    whole, _ = undisturbed
    alone = [with_results(whole, tmp_path / f"alone-{number}", number) for number in range(RUNS)]
    register_at_once(alone)  # each with a database of its own
    expected = [registered(f"sqlite:///{project.folder}/mlflow.db") for project in alone]
    with mlflow_server(tmp_path) as uri:
        projects = [with_results(whole, tmp_path / f"{number}", number) for number in range(RUNS)]
        register_at_once(projects, MLFLOW_TRACKING_URI=uri)
        found = registered(uri)
    assert found["runs"] == {key: run for one in expected for key, run in one["runs"].items()}
    assert len(found["runs"]) == sum(len(one["runs"]) for one in expected)
    told = [json.loads((project.folder / "reports/registration.json").read_text()) for project in projects]
    numbers = [one["versions"]["small"] for one in told]
    assert sorted(numbers) == sorted(found["versions"]) == [1, 2, 3]
    assert [found["versions"][number] for number in numbers] == [one["versions"][1] for one in expected]
    # It goes to the best student of an execution; of several at once, to that of the last one.
    assert found["aliases"].keys() == {"challenger"}
    assert found["aliases"]["challenger"] in numbers
    tried(
        f"{RUNS} runs of `iusp registration` with different results start at the same time on one server",
        RUNS,
        "MLflow has one version for each run",
    )


def test_a_model_registered_by_many_at_once_is_one_version(tmp_path: Path, tried: Tried) -> None:
    model = tmp_path / "model"
    (model / "extra_files").mkdir(parents=True)
    for name in ("weights.safetensors", "config.json"):
        (model / "extra_files" / name).write_text(name)
    with mlflow_server(tmp_path) as uri:
        client = MlflowClient(uri)
        run_id = client.create_run(client.create_experiment("race")).info.run_id
        ready, numbers = threading.Barrier(THREADS), []

        def contend() -> None:
            ready.wait()
            numbers.append(register(MlflowClient(uri), "race", run_id, model, {"student": "small"}, Reporter()))

        threads = [threading.Thread(target=contend) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        versions = client.search_model_versions("name = 'race'")
        assert [int(version.version) for version in versions] == [numbers[0]] == [*set(numbers)]
        assert versions[0].tags["student"] == "small"
        assert len(numbers) == THREADS
    tried(f"{THREADS} clients register a model at the same time on one server", THREADS, "MLflow has one version")
