"""The Kubeflow graph: the steps of dvc.yaml, with one task per seed of each student, between two tasks for MLflow.

Everything that changes a result is an argument or an input artifact of a task, so that Kubeflow can cache outputs.
Settings of the cluster (`kubeflow` in params.yaml) and MLflow's address do not change a result, so they are not.
"""

import copy
import dataclasses
import json
from pathlib import Path

from kfp import dsl, kubernetes
from kfp.compiler import Compiler
from kfp.dsl import PipelineTask
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.graph_component import GraphComponent

from components.begin import begin
from components.dataset import dataset
from components.evaluation import evaluation_of, input_name
from components.features import features
from components.features_part import features_part
from components.finish import finish
from components.registration import registration
from components.student import student
from components.teacher import teacher
from iusp.config.params import Config
from iusp.errors import InputError
from iusp.io.files import atomic

# Steps that run in the image without torch.
LIGHT = {"begin", "dataset", "registration", "finish"}
# Steps that log to MLflow, and those that may read or write S3.
TRACKED = {"begin", "teacher", "student", "registration", "finish"}
STORING = {"begin", "dataset", "registration"}
# Steps that keep unfinished work, so that a retried pod continues instead of starting again.
RESUMING = {"dataset", "features", "teacher", "student"}
MLFLOW_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
STORAGE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
STORAGE_OPTIONS = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN")


def check_source(config: Config) -> None:
    """Check that pods of a cluster can reach the recordings.

    Raises:
        InputError: the recordings are in a folder of this machine.
    """
    dataset, volume = config.dataset, config.kubeflow.volume
    if dataset.source == "sonyc-ust":
        for key, folder in ("keep", dataset.sonyc_ust.folder), ("mirror", dataset.sonyc_ust.local_mirror):
            if folder and not (volume and folder.is_relative_to(volume.path)):
                raise InputError(
                    f"dataset.sonyc_ust.{key}: {folder} is on no volume of the cluster; set it to null, or "
                    "kubeflow.volume to {claim: one with room for it, path: where to mount it} and it to a folder below"
                )
    if dataset.source == "folder" and not (volume and Path(dataset.path).is_relative_to(volume.path)):
        raise InputError(
            f"dataset.path {dataset.path}: is on no volume of the cluster; set kubeflow.volume to {{claim: one that "
            "holds the recordings, path: where to mount it}, and dataset.path to a folder below"
        )


def write(config: Config, output: Path) -> None:
    """Compile the pipeline of a `params.yaml` to IR YAML.

    Args:
        config: the checked settings of `params.yaml`.
        output: path of the YAML file.
    """
    with atomic(output) as temporary:
        document = temporary.with_suffix(".yaml")
        Compiler().compile(build(config), str(document))
        document.replace(temporary)


def build(config: Config) -> GraphComponent:
    """Build the pipeline of a `params.yaml`.

    Args:
        config: the checked settings of `params.yaml`.
    """
    settings = config.settings()

    def text(section: str | None = None) -> str:
        """Return the settings, or one section, as the argument of a task."""
        return json.dumps(settings[section] if section else settings, sort_keys=True)

    cluster = config.kubeflow

    def placed(task: PipelineTask, step: str, name: str | None = None) -> PipelineTask:
        return _place(task.set_display_name(name or step), step, config)

    @dsl.pipeline(name="iusp", description="Distill a large audio tagger into small ones: data to registered students.")
    def iusp() -> None:
        with dsl.ExitHandler(placed(finish().set_caching_options(False), "finish"), name="steps"):
            begun = begin(config=text(), run_name=dsl.PIPELINE_JOB_NAME_PLACEHOLDER)
            placed(begun.set_caching_options(False), "begin")
            data = placed(dataset(config=text("dataset"), source=begun.output), "dataset").outputs
            tables = data["dataset"]
            with dsl.ParallelFor(list(range(cluster.feature_parts)), "parts", cluster.parallelism) as number:
                part = features_part(
                    config=text("features"),
                    part=number,
                    parts=cluster.feature_parts,
                    dataset=tables,
                    recordings=data["recordings"],
                )
                placed(part, "features", "features, a part")
            packed = features(config=text("features"), dataset=tables, parts=dsl.Collected(part.outputs["shards"]))
            log_mel = placed(packed, "features").outputs["features"]
            taught = teacher(
                config=text("teacher"), augmentation=text("augmentation"), dataset=tables, features=log_mel
            )
            knowledge = placed(taught, "teacher").outputs["teacher"]
            trained: dict[str, PipelineTask] = {}
            for name, entry in config.students.items():
                for seed in entry.seeds:
                    task = _named(student, f"{name}-seed-{seed}")(
                        recipe=_recipe_of(config, name, seed),
                        dataset=tables,
                        features=log_mel,
                        teacher=knowledge,
                    )
                    # At most `parallelism` students train at once: each waits for the one that many places before it.
                    earlier = list(trained.values())[-cluster.parallelism :]
                    if len(earlier) == cluster.parallelism:
                        task.after(earlier[0])
                    trained[input_name(name, seed)] = placed(task, "student", f"{name}-seed-{seed}")
            evaluate = evaluation_of({name: entry.seeds for name, entry in config.students.items()})
            judged = evaluate(
                config=text("evaluation"),
                dataset=tables,
                recordings=data["recordings"],
                features=log_mel,
                teacher=knowledge,
                **{name: task.outputs["student"] for name, task in trained.items()},
            )
            report = placed(judged, "evaluation").outputs["evaluation"]
            registered = registration(config=text(), dataset=tables, evaluation=report)
            placed(registered.set_caching_options(False), "registration")

    return iusp


def _recipe_of(config: Config, student: str, seed: int) -> str:
    """Return a student's recipe with one seed, as a task's argument."""
    recipe = config.recipe(student)
    one = recipe.model_copy(update={"student": recipe.student.model_copy(update={"seeds": [seed]})})
    return json.dumps(one.model_dump(mode="json"), sort_keys=True)


def _named(component: BaseComponent, name: str) -> BaseComponent:
    """Return a copy of a component whose tasks have this name, because a run's errors do not show display names."""
    renamed = copy.copy(component)
    renamed.component_spec = dataclasses.replace(component.component_spec, name=name)
    return renamed


def _place(task: PipelineTask, step: str, config: Config) -> PipelineTask:
    """Set the image, the resources, the secrets and the volumes of a task's pod."""
    cluster = config.kubeflow
    pod = cluster.pod_of(step)
    task.set_container_image(cluster.light_image if step in LIGHT else cluster.image)
    task.set_cpu_request(pod.cpu).set_cpu_limit(pod.cpu)
    task.set_memory_request(pod.memory).set_memory_limit(pod.memory)
    if pod.accelerator:
        task.set_accelerator_type(pod.accelerator.resource).set_accelerator_limit(pod.accelerator.count)
    if pod.retries:
        task.set_retry(pod.retries, f"{pod.backoff_seconds}s", 2.0, f"{pod.timeout_seconds}s")
    kubernetes.set_timeout(task, pod.timeout_seconds)
    for label, value in pod.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for toleration in pod.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump())
    # Kubeflow itself forbids privilege escalation and drops all capabilities of every pod.
    kubernetes.set_security_context(task, cluster.user, cluster.user, True)
    # Environment variables, because arguments would change the cache key.
    kubernetes.use_field_path_as_env(task, "IUSP_EXECUTION", "metadata.labels['pipeline/runid']")
    if cluster.work_claim and step in RESUMING:
        kubernetes.mount_pvc(task, cluster.work_claim, "/work")
        task.set_env_variable("IUSP_WORK", "/work")
    if step in TRACKED:
        task.set_env_variable("MLFLOW_EXPERIMENT_NAME", config.registration.experiment)
        task.set_env_variable("IUSP_OUTAGE", config.registration.outage)
        _secret(task, cluster.mlflow_secret, ("MLFLOW_TRACKING_URI",), MLFLOW_KEYS)
    if step in STORING:
        _secret(task, cluster.storage_secret, STORAGE_KEYS, STORAGE_OPTIONS)
    if step in ("begin", "dataset") and cluster.volume:
        kubernetes.mount_pvc(task, cluster.volume.claim, cluster.volume.path)
    return task


def _secret(task: PipelineTask, name: str | None, keys: tuple[str, ...], optional: tuple[str, ...]) -> None:
    """Pass keys of a Kubernetes secret to a task as environment variables of the same names."""
    if name:
        kubernetes.use_secret_as_env(task, name, {key: key for key in keys})
        kubernetes.use_secret_as_env(task, name, {key: key for key in optional}, optional=True)
