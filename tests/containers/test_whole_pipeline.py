"""The whole pipeline in the project's images, by kfp's DockerRunner on a real engine."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.support.docker_engine import Engine
from tests.support.project import STUDENTS, Project

pytestmark = pytest.mark.containers


@contextmanager
def watched(engine: Engine) -> Iterator[dict[str, dict]]:
    """How the containers that run meanwhile are confined, by their ids."""
    seen: dict[str, dict] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            for container in engine.docker("ps", "--quiet").split():
                if container not in seen:
                    shown = engine.docker("inspect", "--format", "{{json .}}", container, check=False)
                    # It may have ended since.
                    if shown.startswith("{"):
                        seen[container] = json.loads(shown)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def run(engine: Engine, project: Project, light: str, cpu: str, *options: str, check: bool = True) -> tuple[int, str]:
    images = ("-S", f"kubeflow.light_image={light}", "-S", f"kubeflow.image={cpu}")
    command = ("python", "-m", "pipelines", "run", "--docker", *images, *options)
    done = project.run(*command, check=check, DOCKER_HOST=engine.host)
    return done.returncode, done.stdout + done.stderr


def written(project: Project, name: str) -> Path:
    (path,) = project.folder.glob(f"kubeflow/*/iusp-*/{name}")
    return path


def client(project: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project.folder / 'kubeflow/mlflow.db'}")


def test_a_run_in_the_images_gives_the_digits_of_dvc(
    engine: Engine, light: str, cpu: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = Project(tmp_path_factory.mktemp("containers") / "project")
    with watched(engine) as containers:
        run(engine, project, light, cpu)
    for step in (["dataset"], ["features"], ["teacher"], *(["student", name] for name in STUDENTS), ["evaluation"]):
        project.run("iusp", *step)
    for name in ("metrics.json", "features.json", "predictions/small-seed-1.csv"):
        ours = (project.folder / "reports/evaluation" / name).read_bytes()
        assert (written(project, "evaluation/evaluation") / name).read_bytes() == ours, name
    # Nobody who could do harm, nowhere to go.
    assert {one["Config"]["Image"] for one in containers.values()} == {light, cpu}
    for container in containers.values():
        host = container["HostConfig"]
        assert host["NetworkMode"] == "none"
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert container["Config"]["User"] not in ("", "0", "0:0")
    for path in (written(project, "evaluation/evaluation"), written(project, "registration/registration")):
        assert path.stat().st_uid == 10001
    registered = json.loads(written(project, "registration/registration").read_text())
    versions = client(project).search_model_versions("name = 'iusp-student'")
    assert {int(one.version) for one in versions} == set(registered["versions"].values())
    (parent,) = client(project).search_runs(
        [client(project).get_experiment_by_name("iusp").experiment_id], "tags.`iusp.step` = 'pipeline'"
    )
    assert parent.info.status == "FINISHED"


def test_a_failing_container_fails_the_run(engine: Engine, light: str, cpu: str, tmp_path: Path) -> None:
    # The canary: DockerRunner can take a container that failed for one that succeeded (kubeflow/pipelines 13332).
    project = Project(tmp_path / "project")
    (tmp_path / "recordings").mkdir()
    source = ("-S", "dataset.source=folder", "-S", f"dataset.path={tmp_path / 'recordings'}")
    status, shown = run(engine, project, light, cpu, *source, check=False)
    assert status == 2
    assert f"iusp: {tmp_path / 'recordings'}: needs annotations.csv" in shown
    assert "Traceback" not in shown
    assert shown.splitlines()[-1].startswith("iusp: ")
    (parent,) = client(project).search_runs([client(project).get_experiment_by_name("iusp").experiment_id])
    assert parent.info.status == "FAILED"


def test_an_image_that_is_not_there_is_named(engine: Engine, light: str, tmp_path: Path) -> None:
    status, shown = run(engine, Project(tmp_path / "project"), light, "iusp:nowhere", check=False)
    assert status == 2
    assert shown.splitlines()[-1].startswith("iusp: iusp:nowhere: no such image")


def test_no_engine_is_one_line(tmp_path: Path) -> None:
    nowhere = Engine(f"unix://{tmp_path}/docker.sock")
    status, shown = run(nowhere, Project(tmp_path / "project"), "light", "cpu", check=False)
    assert status == 2
    assert shown.splitlines()[-1].startswith("iusp: no Docker engine")
    assert "Traceback" not in shown
