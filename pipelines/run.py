"""Run the compiled pipeline on this machine, in processes or in containers."""

import io
import os
import sys
import time
import warnings
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

import yaml
from kfp import local
from kfp.components import load_component_from_text

from iusp.config.params import Config
from iusp.errors import InputError
from iusp.io.text import one_line
from iusp.registry.tracking import Tracker
from pipelines.graph import MLFLOW_KEYS, STORAGE_KEYS, STORAGE_OPTIONS

# User id of containers when the caller is root.
NOBODY = 10001


def local_source(config: Config) -> tuple[str, Path] | None:
    """Return the settings key and the path of the local folder that the dataset step reads, if there is one.

    Raises:
        InputError: the folder that keeps SONYC-UST does not exist yet.
    """
    dataset, sonyc_ust = config.dataset, config.dataset.sonyc_ust
    if dataset.source == "folder":
        return "dataset.path", Path(dataset.path).resolve()
    if dataset.source == "sonyc-ust" and sonyc_ust.folder:
        if not sonyc_ust.folder.exists():
            raise InputError(f"{sonyc_ust.folder}: no such folder; run iusp dataset first, which fetches it")
        return "dataset.sonyc_ust.keep", sonyc_ust.folder.parent.resolve()
    if dataset.source == "sonyc-ust" and sonyc_ust.local_mirror:
        return "dataset.sonyc_ust.mirror", sonyc_ust.local_mirror.resolve()
    if dataset.source == "dvc" and dataset.dvc and Path(dataset.dvc.url).is_dir():
        return "dataset.dvc.url", Path(dataset.dvc.url).resolve()
    return None


def run(package: Path, config: Config, output: Path, containers: bool) -> tuple[Path, Path]:
    """Run a compiled pipeline task by task, starting each task as Kubeflow does.

    MLflow is the server of MLFLOW_TRACKING_URI, or a database in `output`. A container does not run as root, has no
    capabilities, and can write only to `output` and /tmp. It has a network only if MLflow or the recordings need one.

    Args:
        package: path of the compiled pipeline.
        config: settings that the pipeline was compiled from.
        output: folder for the artifacts of all runs.
        containers: whether each task runs in a container instead of a process.

    Returns:
        Folder of the evaluation step and file of the registration step.

    Raises:
        InputError: a task failed, or there is no Docker engine or image.
    """
    key, source = local_source(config) or ("", None)
    if source and not source.is_dir():
        raise InputError(f"{source}: no such folder; correct {key}")
    output = output.resolve()
    name = time.strftime("%Y%m%d-%H%M%S")
    root = output / name
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output}/mlflow.db"
    environment = {
        "IUSP_EXECUTION": f"local-{name}",
        "MLFLOW_EXPERIMENT_NAME": config.registration.experiment,
        "MLFLOW_TRACKING_URI": uri,
        "IUSP_OUTAGE": config.registration.outage,
    }
    if containers:
        if uri.startswith("sqlite:") and not uri.startswith(f"sqlite:///{output}/"):
            raise InputError(
                f"MLFLOW_TRACKING_URI: containers cannot open a database outside {output}; unset it, or start a server"
            )
        _check_images(config)
    (root / "workspace").mkdir(parents=True)
    if containers:
        secrets = {key: os.environ[key] for key in (*MLFLOW_KEYS, *STORAGE_KEYS, *STORAGE_OPTIONS) if key in os.environ}
        remote = not uri.startswith("sqlite:") or config.dataset.source in ("s3", "dvc", "sonyc-ust")
        runner: Any = _docker(output, root, source, environment | secrets, remote)
    else:
        runner = local.SubprocessRunner(use_venv=False)
        # kfp warns about every image without "python" in its name.
        warnings.filterwarnings("ignore", message="You may be attemping")
    # kfp warns about cluster settings, which have no effect on this machine.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="kfp")
    os.environ.update(environment)
    if uri == f"sqlite:///{output}/mlflow.db":
        # MLflow's database keeps its artifacts in the working folder.
        os.chdir(output)
    local.init(runner, pipeline_root=str(root), workspace_root=str(root / "workspace"))
    heard = _Heard(sys.stdout)
    try:
        with redirect_stdout(heard):
            load_component_from_text(_for_this_machine(package))()
    except KeyboardInterrupt:
        with suppress(Exception):
            Tracker.joined().finish("CANCELED")
        raise
    except RuntimeError as error:
        raise InputError(f"{heard.failure or one_line(error)} (a task of {root} failed)") from None
    return _written(root, "evaluation/evaluation/metrics.json").parent, _written(root, "registration/registration")


class _Heard(io.TextIOBase):
    """A stream that passes text on and remembers the last error that a task printed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure = ""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip().startswith("iusp: "):
                self.failure = line.strip().removeprefix("iusp: ")
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


def _written(root: Path, name: str) -> Path:
    # kfp can report a container that fails at once as a success (kubeflow/pipelines 13332).
    found = list(root.glob(f"*/{name}"))
    if not found:
        raise InputError(f"{root}: no task wrote {name}; the output of the tasks above says why")
    return found[0]


def _for_this_machine(package: Path) -> str:
    """Return the pipeline without settings that only a cluster needs: environment variables and retries."""
    documents = list(yaml.safe_load_all(package.read_text(encoding="utf-8")))
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        executor["container"].pop("env", None)
    for component in (documents[0]["root"], *documents[0]["components"].values()):
        for task in component.get("dag", {}).get("tasks", {}).values():
            task.pop("retryPolicy", None)
    return yaml.safe_dump_all(documents)


def _check_images(config: Config) -> None:
    from docker.errors import DockerException, ImageNotFound

    import docker

    try:
        client = docker.from_env()
        client.ping()
    except DockerException as error:
        reason = one_line(error)
        raise InputError(f"no Docker engine answers; start one, or run without --docker ({reason})") from None
    for image in (config.kubeflow.image, config.kubeflow.light_image):
        try:
            client.images.get(image)
        except ImageNotFound:
            raise InputError(f"{image}: the Docker engine has no such image; run make images or docker pull") from None


def _docker(
    output: Path, root: Path, source: Path | None, environment: dict[str, str], remote: bool
) -> local.DockerRunner:
    import docker

    user = os.getuid() or NOBODY
    if user != os.getuid():
        # Only what containers write to changes its owner, because `output` may also contain other files of the user.
        database, artifacts = output / "mlflow.db", output / "mlruns"
        for path in (output, root, *root.rglob("*"), database, artifacts, *artifacts.rglob("*")):
            if path.exists():
                os.chown(path, user, user, follow_symlinks=False)
    mounts = [docker.types.Mount(str(output), str(output), "bind")]
    if source:
        mounts.append(docker.types.Mount(str(source), str(source), "bind", read_only=True))
    return local.DockerRunner(
        environment=environment,
        mounts=mounts,
        user=f"{user}:{user}",
        working_dir=str(output),
        network_mode="host" if remote else "none",
        read_only=True,
        tmpfs={"/tmp": ""},  # noqa: S108 (inside the container)
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
    )
