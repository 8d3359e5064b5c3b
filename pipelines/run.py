"""The compiled graph on this machine: in processes, or in containers."""

import os
import time
import warnings
from pathlib import Path
from typing import Any

import yaml
from kfp import local
from kfp.components import load_component_from_text

from iusp.config import Config
from iusp.errors import InputError
from pipelines.graph import MLFLOW_KEYS, STORAGE_KEYS, STORAGE_OPTIONS

# Whom containers run as where the caller is root.
NOBODY = 10001


def local_source(config: Config) -> Path | None:
    """Return the folder of this machine, if any, that the dataset step reads."""
    dataset = config.dataset
    if dataset.source == "folder":
        return Path(dataset.path).resolve()
    if dataset.source == "dvc" and dataset.dvc and Path(dataset.dvc.url).is_dir():
        return Path(dataset.dvc.url).resolve()
    return None


def run(package: Path, config: Config, output: Path, containers: bool) -> tuple[Path, Path]:
    """Run a compiled pipeline, task by task, each as Kubeflow would start it.

    MLflow is the server of MLFLOW_TRACKING_URI, or a database in `output`. A container has no root, no capability, and
    nothing to write but `output` and /tmp; it has no network, unless MLflow or the recordings are on it.

    Args:
        package: the compiled pipeline.
        config: what it was compiled from.
        output: folder for the artifacts of this run.
        containers: run each task in its image instead of a process.

    Returns:
        What the evaluation step and the registration step wrote.

    Raises:
        InputError: a task failed, or there is no Docker engine or image.
    """
    name = time.strftime("%Y%m%d-%H%M%S")
    root = output.resolve() / name
    root.mkdir(parents=True)
    own = os.environ.get("MLFLOW_TRACKING_URI")
    uri = own or f"sqlite:///{output.resolve()}/mlflow.db"
    environment = {
        "IUSP_EXECUTION": f"local-{name}",
        "MLFLOW_EXPERIMENT_NAME": config.registration.experiment,
        "MLFLOW_TRACKING_URI": uri,
    }
    if containers:
        secrets = {key: os.environ[key] for key in (*MLFLOW_KEYS, *STORAGE_KEYS, *STORAGE_OPTIONS) if key in os.environ}
        remote = not uri.startswith("sqlite:") or config.dataset.source in ("s3", "dvc")
        runner: Any = _docker(config, output, environment | secrets, remote)
    else:
        os.environ.update(environment)
        if not own:
            # MLflow's database keeps its artifacts in the working folder.
            os.chdir(output)
        runner = local.SubprocessRunner(use_venv=False)
        # It takes any image without "python" in its name for a mistake.
        warnings.filterwarnings("ignore", message="You may be attemping")
    local.init(runner, pipeline_root=str(root), workspace_root=str(_folder(root / "workspace")))
    try:
        load_component_from_text(_for_this_machine(package))()
    except RuntimeError as error:
        raise InputError(f"{root}: {' '.join(str(error).split())}; the task's own words are above") from None
    return _written(root, "evaluation/evaluation/metrics.json").parent, _written(root, "registration/registration")


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _written(root: Path, name: str) -> Path:
    # A container that fails at once can pass for a success (kubeflow/pipelines 13332).
    found = list(root.glob(f"*/{name}"))
    if not found:
        raise InputError(f"{root}: no task wrote {name}; its own words are above")
    return found[0]


def _for_this_machine(package: Path) -> str:
    """Return the pipeline without what is the cluster's: environment variables, and retries after a pause."""
    documents = list(yaml.safe_load_all(package.read_text(encoding="utf-8")))
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        executor["container"].pop("env", None)
    for component in documents[0]["components"].values():
        for task in component.get("dag", {}).get("tasks", {}).values():
            task.pop("retryPolicy", None)
    return yaml.safe_dump_all(documents)


def _docker(config: Config, output: Path, environment: dict[str, str], remote: bool) -> local.DockerRunner:
    from docker.errors import DockerException, ImageNotFound

    import docker

    images = {config.kubeflow.image, config.kubeflow.light_image}
    try:
        client = docker.from_env()
        for image in images:
            client.images.get(image)
    except ImageNotFound:
        raise InputError(f"{image}: no such image here; make images, or docker pull it") from None
    except DockerException as error:
        raise InputError(
            f"no Docker engine ({' '.join(str(error).split())[:150]}); start one, or leave --docker out"
        ) from None
    user = os.getuid() or NOBODY
    if user != os.getuid():
        for path in (output, *output.rglob("*")):
            os.chown(path, user, user)
    mounts = [docker.types.Mount(str(output.resolve()), str(output.resolve()), "bind")]
    if source := local_source(config):
        mounts.append(docker.types.Mount(str(source), str(source), "bind", read_only=True))
    return local.DockerRunner(
        environment=environment,
        mounts=mounts,
        user=f"{user}:{user}",
        working_dir=str(output.resolve()),
        network_mode="host" if remote else "none",
        read_only=True,
        tmpfs={"/tmp": ""},  # noqa: S108 (inside the container)
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
    )
