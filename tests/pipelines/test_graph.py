"""The Kubeflow graph: equal to DVC's, compiled as it is kept, and really run by kfp's own runner in processes."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from mlflow import MlflowClient

from components.__main__ import README, readme
from iusp.config.params import load
from iusp.registry.tracking import Tracker
from pipelines.__main__ import main
from tests.support.kubeflow_api import KubeflowApi, Progress
from tests.support.local_servers import environment, heed_interrupts
from tests.support.project import ROOT, STUDENTS, Project

pytestmark = pytest.mark.slow

STEPS = ("dataset", "features", "teacher", "student", "evaluation", "registration")
# On a cluster, a step's parts are tasks of a loop.
STEP_OF = {"features-part": "features", "for-loop": "features"}
NO_STEPS = {"begin", "finish", "exit-handler"}


def compile_(folder: Path, *options: str) -> tuple[dict, dict]:
    output = folder / "iusp.yaml"
    done = CliRunner().invoke(main, ["--params", str(ROOT / "params.yaml"), "compile", "-o", str(output), *options])
    assert done.exit_code == 0, done.output
    pipeline, platform = yaml.safe_load_all(output.read_text())
    return pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[dict, dict]]:
    """The folder of what is compiled of params.yaml, where the environment has secrets; and that."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "https://user:planted@example.org")
        compiled = compile_(folder)
    return folder, compiled


@pytest.fixture(scope="module")
def compiled(kept: tuple[Path, tuple[dict, dict]]) -> tuple[dict, dict]:
    return kept[1]


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    """What is compiled with settings of how tasks run."""
    return compile_(
        tmp_path_factory.mktemp("placed"),
        *("-S", "kubeflow.parallelism=2", "-S", "kubeflow.feature_parts=3"),
        *("-S", "kubeflow.steps.teacher={accelerator: {resource: nvidia.com/gpu, count: 2}, memory: 32Gi, retries: 5}"),
        *("-S", "kubeflow.pod.node_selector={pool: audio}"),
        *("-S", "kubeflow.pod.tolerations=[{key: gpu, operator: Exists}]"),
        *("-S", "kubeflow.volume={claim: recordings, path: /recordings}", "-S", "kubeflow.storage_secret=bucket"),
    )


def dags(pipeline: dict) -> dict[str, dict]:
    """All graphs within graphs, by the name of their component."""
    found = {name: one["dag"]["tasks"] for name, one in pipeline["components"].items() if "dag" in one}
    return {"root": pipeline["root"]["dag"]["tasks"]} | found


def component(task: dict) -> str:
    name = re.sub(r"^comp-|-\d+$", "", task["componentRef"]["name"])
    return "student" if name.endswith("-seed") else name


def arguments(task: dict) -> dict[str, Any]:
    parameters = task.get("inputs", {}).get("parameters", {})
    return {
        name: value["runtimeValue"]["constant"]
        for name, value in parameters.items()
        if "constant" in value.get("runtimeValue", {})
    }


def step(name: str) -> str:
    return STEP_OF.get(name, name)


def test_the_kept_pipeline_is_the_one_of_params(kept: tuple[Path, tuple[dict, dict]]) -> None:
    ours = (ROOT / "pipelines/iusp.yaml").read_text()
    assert (kept[0] / "iusp.yaml").read_text() == ours, "run: python -m pipelines compile -o pipelines/iusp.yaml"


def test_the_page_about_components_is_theirs() -> None:
    assert README.read_text() == readme(), "run: python -m components"


def edges(pipeline: dict) -> set[tuple[str, str]]:
    """Which step's artifacts each step takes."""
    found = set()
    for tasks in dags(pipeline).values():
        for task in tasks.values():
            for artifact in task.get("inputs", {}).get("artifacts", {}).values():
                if "taskOutputArtifact" in artifact:
                    producer = tasks[artifact["taskOutputArtifact"]["producerTask"]]
                    found.add((step(component(producer)), step(component(task))))
    return {(producer, consumer) for producer, consumer in found if producer != consumer}


def test_both_graphs_have_the_same_steps_and_edges(compiled: tuple[dict, dict]) -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    # On a cluster, a student's recipe is an argument of its task.
    stages = {name: stage.get("do", stage) for name, stage in stages.items() if name != "recipes"}
    writers = {out.removesuffix("/${key}"): name for name, stage in stages.items() for out in stage["outs"]}
    local = {
        (writer, name)
        for name, stage in stages.items()
        for dep in stage["deps"]
        for out, writer in writers.items()
        if out.startswith(dep) or dep.startswith(out)
        if writer != name
    }
    tasks = {component(task) for tasks in dags(compiled[0]).values() for task in tasks.values()}
    steps = {step(name) for name in tasks - NO_STEPS}
    assert steps == set(stages) == set(STEPS)
    assert edges(compiled[0]) == local


def test_each_task_is_given_the_params_that_its_stage_reads(compiled: tuple[dict, dict]) -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    settings = load(ROOT / "params.yaml").settings()
    seen: dict[str, set[str]] = {}
    for tasks in dags(compiled[0]).values():
        for task in tasks.values():
            given = [json.loads(value) for value in arguments(task).values() if str(value).startswith('{"')]
            for value in given:
                if value == settings:
                    sections = set(settings)
                elif "student" in value:
                    seeds = value["student"].pop("seeds")
                    recipe = load(ROOT / "params.yaml").recipe(value["name"]).model_dump(mode="json")
                    assert set(seeds) <= set(recipe["student"].pop("seeds"))
                    assert value == recipe
                    assert len(seeds) == 1
                    sections = {"distillation", "students"}
                else:
                    (section,) = [section for section, one in settings.items() if one == value]
                    sections = {section}
                seen.setdefault(step(component(task)), set()).update(sections)
    stages["student"] = stages.pop("recipes")  # which hold what params.yaml says of a student
    for name, stage in stages.items():
        listed = {param.partition(".")[0] for param in stage.get("do", stage)["params"]}
        # Which students there are is in the inputs of the task.
        assert seen[name] == listed - ({"students"} if name == "evaluation" else set()), name


def test_one_task_for_each_student_and_seed_so_many_at_once(placed: tuple[dict, dict]) -> None:
    pipeline, _ = placed
    (tasks,) = [tasks for tasks in dags(pipeline).values() if "evaluation" in tasks]
    students = {name: task for name, task in tasks.items() if component(task) == "student"}
    config = load(ROOT / "params.yaml")
    names = [task["taskInfo"]["name"] for task in students.values()]
    assert sorted(students) == sorted(name.replace("_", "-") for name in names)
    assert sorted(names) == sorted(f"{name}-seed-{seed}" for name, one in config.students.items() for seed in one.seeds)
    waiting = {name: set(task["dependentTasks"]) & set(students) for name, task in students.items()}
    assert sorted(map(len, waiting.values())) == [0, 0] + [1] * (len(students) - 2)
    (loop,) = [task for tasks in dags(pipeline).values() for task in tasks.values() if "parameterIterator" in task]
    assert json.loads(loop["parameterIterator"]["items"]["raw"]) == [0, 1, 2]
    assert loop["iteratorPolicy"]["parallelismLimit"] == 2


def test_what_is_cached_retried_and_placed(placed: tuple[dict, dict]) -> None:
    pipeline, pods = placed
    tasks = {component(task): task for tasks in dags(pipeline).values() for task in tasks.values()}
    for name, task in tasks.items():
        if name.startswith(("exit-handler", "for-loop")):
            continue
        assert task["cachingOptions"].get("enableCache", False) == (name not in {"begin", "finish", "registration"}), (
            name
        )
        assert task["retryPolicy"]["maxRetryCount"] == (5 if name == "teacher" else 2)
        assert task["retryPolicy"]["backoffDuration"] == "30s"
    executors = pipeline["deploymentSpec"]["executors"]
    teacher = executors["exec-teacher"]["container"]["resources"]
    assert teacher["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert teacher["accelerator"]["resourceCount"] == "2"
    assert teacher["resourceMemoryLimit"] == teacher["resourceMemoryRequest"] == "32Gi"
    for name, executor in executors.items():
        light = name.removeprefix("exec-") in {"begin", "finish", "dataset", "registration"}
        assert executor["container"]["image"] == ("iusp:light" if light else "iusp:cpu")
        assert "pip install" not in " ".join(executor["container"]["command"])
        pod = pods[name]
        assert pod["securityContext"] == {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}
        assert int(pod["activeDeadlineSeconds"]) > 0
        assert pod["nodeSelector"]["labels"] == {"pool": "audio"}
        assert [one["key"] for one in pod["tolerations"]] == ["gpu"]
    for name in ("exec-begin", "exec-dataset"):
        (mount,) = pods[name]["pvcMount"]
        assert mount["mountPath"] == "/recordings"
    secrets = {name: {one["secretName"] for one in pod.get("secretAsEnv", [])} for name, pod in pods.items()}
    assert secrets["exec-dataset"] == {"bucket"}
    assert secrets["exec-begin"] == {"bucket", "iusp-mlflow"}
    assert secrets["exec-registration"] == {"bucket", "iusp-mlflow"}
    assert secrets["exec-teacher"] == secrets["exec-small-seed-0"] == {"iusp-mlflow"}
    assert secrets["exec-evaluation"] == set()


def test_no_secret_of_the_environment_is_compiled_in(kept: tuple[Path, tuple[dict, dict]]) -> None:
    assert "planted" not in (kept[0] / "iusp.yaml").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-S", "teacher.epochs=3"], "teacher.epochs: no such key"),
        (["-S", "teacher.training.epochs"], "not KEY=VALUE"),
        (["-S", "nothing.at.all=1"], "not KEY=VALUE"),
        (["-S", "kubeflow.steps.teacher={cpus: 2}"], "cpus"),
        (["-S", "kubeflow.steps.trainer={cpu: '2'}"], "no such step"),
        (["-S", "kubeflow.pod.memory=lots"], "kubeflow.pod.memory"),
        (["-S", "kubeflow.pod.cpu='0'"], "kubeflow.pod.cpu"),
        (["-S", "kubeflow.pod.tolerations=[{}]"], "operator Equal needs a key"),
        (["-S", "kubeflow.mlflow_secret=Bad Name!"], "kubeflow.mlflow_secret"),
        (["-S", "kubeflow.volume={claim: recordings, path: /tmp}"], "is used by the image"),
        (["--image", "UPPER/case name"], "kubeflow.image"),
        (["--image", ""], "kubeflow.image"),
        (["-S", "dataset.source=folder"], "is on no volume of the cluster"),
    ],
)
def test_a_wrong_setting_is_one_line(
    make_project: Callable[[str], Project], monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.chdir(make_project("wrong").folder)
    done = CliRunner().invoke(main, ["compile", "-o", "iusp.yaml", *options])
    assert done.exit_code == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_process_with_a_wrong_setting_prints_that_line_alone(make_project: Callable[[str], Project]) -> None:
    command = ("python", "-m", "pipelines", "compile", "-o", "iusp.yaml", "-S", "teacher.epochs=3")
    done = make_project("wrong").run(*command, check=False)
    assert done.returncode == 2
    assert "teacher.epochs: no such key" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("kubeflow") / "project")
    # More than one part, and parts of several shards.
    done = project.run("python", "-m", "pipelines", "run", "-S", "kubeflow.feature_parts=3")
    (project.folder / "shown").write_text(done.stdout)
    return project


def written(project: Project, name: str) -> Path:
    (path,) = project.folder.glob(f"kubeflow/*/iusp-*/{name}")
    return path


@pytest.fixture(scope="module")
def client(project: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project.folder / 'kubeflow/mlflow.db'}")


def test_a_local_run_gives_the_digits_of_dvc(project: Project, undisturbed: Project) -> None:
    # test_pipeline.py finds them the same as those of `dvc repro`.
    assert undisturbed.params() == project.params()
    for name in ("metrics.json", "features.json", "predictions/teacher.csv", "predictions/small-seed-1.csv"):
        ours = (undisturbed.folder / "reports/evaluation" / name).read_bytes()
        assert (written(project, "evaluation/evaluation") / name).read_bytes() == ours, name
    for name in ("dataset.json", "index.parquet", "labels.parquet"):
        ours = (undisturbed.folder / "data/dataset" / name).read_bytes()
        assert (written(project, "dataset/dataset") / name).read_bytes() == ours
    for split in ("train", "validate", "test"):
        ours = (undisturbed.folder / f"data/features/{split}.npy").read_bytes()
        assert (written(project, "features/features") / f"{split}.npy").read_bytes() == ours


def test_results_are_shown_and_artifacts_tell_what_they_are(project: Project) -> None:
    shown = (project.folder / "shown").read_text()
    metrics = json.loads((written(project, "evaluation/evaluation") / "metrics.json").read_text())
    assert f"{metrics['teacher']['coarse']['micro_auprc']:.3f} [" in shown
    outputs = json.loads(written(project, "evaluation/executor_output.json").read_text())["artifacts"]
    (logged,) = outputs["metrics"]["artifacts"]
    assert (
        logged["metadata"]["students.small.coarse.micro_auprc"] == metrics["students"]["small"]["coarse"]["micro_auprc"]
    )
    assert logged["metadata"]["students.small.parameters"] == metrics["students"]["small"]["parameters"]
    assert "data:image/png;base64" in written(project, "evaluation/report").read_text()
    assert "| small | iusp |" in written(project, "evaluation/comparison").read_text()
    (data,) = json.loads(written(project, "dataset/executor_output.json").read_text())["artifacts"]["dataset"][
        "artifacts"
    ]
    assert data["metadata"]["clips"] == {"train": 40, "validate": 20, "test": 20}


def test_mlflow_runs_hang_under_one_that_names_the_kubeflow_run(project: Project, client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name("iusp")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    (name,) = [name for name in runs if name.startswith("pipeline local-")]
    parent = runs.pop(name)
    assert parent.data.tags["kfp.pipeline_run_name"].startswith("iusp-")
    assert name == f"pipeline {parent.data.tags['kfp.pipeline_run_id']}"
    assert parent.data.tags["kfp.status"] == "SUCCEEDED"
    assert parent.data.params["teacher.training.epochs"] == "3"
    students = {f"{name}-seed-{seed}" for name, one in STUDENTS.items() for seed in one["seeds"]}
    assert set(runs) == {"dataset", "features", "teacher", "evaluation", "registration"} | students
    for run in [*runs.values(), parent]:
        assert run.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    registered = json.loads(written(project, "registration/registration").read_text())
    assert registered["run_id"] == parent.info.run_id
    # The version of the data, as MLflow's runs of `dvc repro` name it, too: test_data_versions.py.
    digest = json.loads((written(project, "dataset/dataset") / "dataset.json").read_text())["digest"]
    assert parent.data.tags["iusp.data"] == digest
    for name in ("dataset", "recordings"):
        (artifact,) = json.loads(written(project, "dataset/executor_output.json").read_text())["artifacts"][name][
            "artifacts"
        ]
        assert artifact["metadata"]["digest"] == digest
    challenger = client.get_model_version_by_alias("iusp-student", "challenger")
    assert int(challenger.version) == registered["versions"][registered["challenger"]]


def test_a_failing_task_fails_the_run_and_mlflow_knows(make_project: Callable[[str], Project]) -> None:
    project = make_project("failing")
    done = project.run(
        *("python", "-m", "pipelines", "run"),
        *("-S", "dataset.source=folder", "-S", "dataset.path=recordings"),
        check=False,
    )
    assert done.returncode == 2
    assert "recordings: needs annotations.csv" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "recordings: needs annotations.csv" in done.stderr.splitlines()[-1]
    client = MlflowClient(f"sqlite:///{project.folder / 'kubeflow/mlflow.db'}")
    (parent,) = client.search_runs([client.get_experiment_by_name("iusp").experiment_id])
    assert parent.info.status == "FAILED"
    assert parent.data.tags["kfp.status"] == "FAILED"


def test_an_mlflow_that_is_not_there_fails_at_once(make_project: Callable[[str], Project]) -> None:
    command = ("python", "-m", "pipelines", "run")
    done = make_project("alone").run(*command, check=False, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("iusp: MLflow at http://127.0.0.1:9: ")
    assert "Traceback" not in done.stdout + done.stderr


def test_an_interrupted_run_is_killed_in_mlflow_too(make_project: Callable[[str], Project]) -> None:
    project = make_project("interrupted")
    process = subprocess.Popen(
        ["python", "-m", "pipelines", "run"],
        cwd=project.folder,
        env=environment() | {"PYTHONPATH": str(project.folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    while not list(project.folder.glob("kubeflow/*/iusp-*/dataset/.*.work-*/source/audio/*")):
        assert process.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) != 0
    client = MlflowClient(f"sqlite:///{project.folder / 'kubeflow/mlflow.db'}")
    (parent,) = client.search_runs([client.get_experiment_by_name("iusp").experiment_id])
    assert parent.info.status == "KILLED"


def test_the_plugin_s_parent_is_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Kubeflow's MLflow plugin makes a run for the pipeline, for each loop and for each task, and names the last one.
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("the administrator's")
    root = client.create_run(experiment)
    loop = client.create_run(experiment, tags={"mlflow.parentRunId": root.info.run_id})
    task = client.create_run(experiment, tags={"mlflow.parentRunId": loop.info.run_id})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_RUN_ID", task.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "iusp")
    monkeypatch.setenv("IUSP_EXECUTION", "workflow")
    with Tracker.joined().step("teacher") as run:
        pass
    tags = client.get_run(run.run_id).data.tags
    assert tags["mlflow.parentRunId"] == root.info.run_id
    assert client.get_run(run.run_id).info.experiment_id == experiment
    assert client.get_experiment_by_name("iusp") is None
    assert os.environ["MLFLOW_RUN_ID"] == task.info.run_id


def test_the_true_pipeline_is_submitted_and_followed(tmp_path: Path) -> None:
    # The server keeps Kubeflow's contract; it is no cluster.
    with KubeflowApi(multi_user=True) as api:
        api.progress = [Progress("RUNNING", {"small-seed-0": ("RUNNING", "")}), Progress("SUCCEEDED")]
        options = ("--host", api.url, "--namespace", "audio", "--wait", "-S", "teacher.training.epochs=7")
        done = CliRunner().invoke(main, ["--params", str(ROOT / "params.yaml"), "submit", *options])
        assert done.exit_code == 0, done.output
        (version,) = api.versions.values()
    (run,) = api.runs.values()
    assert f"/#/runs/details/{run['run_id']}" in done.output
    assert "SUCCEEDED" in done.output
    (upload,) = [one for one in api.requests if "upload_version" in one.path]
    assert "task small-seed-0: RUNNING" in done.output
    assert '\\"epochs\\": 7' in json.dumps(version["pipeline_spec"])
    # Pods' security, secrets and volumes are in the platform's part of the package.
    assert b"runAsNonRoot" in upload.body
