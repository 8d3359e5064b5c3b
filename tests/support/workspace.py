"""The pipeline at its smallest, run undisturbed once, and what two runs of it have in common."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient

from tests.support.local_servers import environment
from tests.support.project import Project, merged

SETTINGS: dict[str, Any] = {
    "dataset": {"clips": {"train": 32, "validate": 12, "test": 12}},
    "features": {"clips_per_shard": 8},
    "evaluation": {"resamples": 20, "pictured_clips": 1},
}
STUDENTS = {"small": {"architecture": "plain", "parameters": 2500, "method": "iusp+kd", "seeds": [0, 1]}}
# Files of which `unrepeated` leaves something out.
UNREPEATED = (
    "latency.json",
    "measurements.json",
    "comparison.md",
    "report.html",
    "registration.json",
    "MLmodel",
)
# A step's command, and what it writes.
COMMANDS = {
    "dataset": ("iusp", "dataset"),
    "features": ("iusp", "features"),
    "teacher": ("iusp", "teacher"),
    "student": ("iusp", "student", "small"),
    "evaluation": ("iusp", "evaluation"),
    "registration": ("iusp", "registration"),
}
OUTPUTS = {
    "dataset": ("data/dataset", "data/recordings"),
    "features": ("data/features",),
    "teacher": ("models/teacher",),
    "student": ("models/students/small",),
    "evaluation": ("reports/evaluation",),
    "registration": ("reports/registration.json",),
}


def new_project(folder: Path) -> Project:
    project = Project(folder)
    project.write_params(merged(project.params(), SETTINGS) | {"students": STUDENTS})
    project.commit()
    return project


def existing(folder: Path) -> Project:
    project = Project.__new__(Project)
    project.folder = folder
    return project


def copied(undisturbed: Project, folder: Path, step: str) -> Project:
    """A copy of the workspace as it is before a step; before registration, MLflow knows nothing yet."""
    steps = list(OUTPUTS)
    outputs = [output for later in steps[steps.index(step) :] for output in OUTPUTS[later]]
    omitted = {undisturbed.folder / output for output in outputs}
    if step == "registration":
        omitted |= {undisturbed.folder / name for name in ("mlflow.db", "mlruns")}
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(
        undisturbed.folder,
        folder,
        ignore=lambda parent, names: [name for name in names if Path(parent) / name in omitted],
    )
    return existing(folder)


def start(project: Project, *command: str, **extra: str) -> "subprocess.Popen[str]":
    """Start a command in a process group of its own."""
    return subprocess.Popen(
        command,
        cwd=project.folder,
        env=environment() | {"PYTHONPATH": str(project.folder)} | extra,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )


def is_at_work(process: "subprocess.Popen[str]", step: str) -> bool:
    """Whether a step, run by this process, has done with its imports: it holds its work, or MLflow's database, open."""
    with suppress(psutil.NoSuchProcess, FileNotFoundError, PermissionError):  # it, or one of its files, has just gone
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            if {"iusp", step} <= {Path(word).name for word in one.cmdline()}:
                held = [str(link.readlink()) for link in Path(f"/proc/{one.pid}/fd").iterdir()]
                return any("mlflow.db" in path if step == "registration" else ".work-" in path for path in held)
    return False


def await_work(process: "subprocess.Popen[str]", step: str) -> None:
    while process.poll() is None and not is_at_work(process, step):
        time.sleep(0.02)


def kill(process: "subprocess.Popen[str]") -> bool:
    """Kill a process and all that it has started; tell whether it was still there."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def contents(folder: Path, *tops: str) -> dict[str, str]:
    """The SHA-256 of every file, but for what is measured or named anew by every run (`unrepeated`)."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(unrepeated(path)).hexdigest()
        for top in tops or ("data", "models", "reports")
        for path in sorted([folder / top, *(folder / top).rglob("*")])
        if path.is_file() and path.name != ".gitignore"
    }


def unrepeated(path: Path) -> bytes:
    """A file's bytes, without what two undisturbed runs don't have in common either.

    Times that were measured: all numbers of `latency.json`, `latency_ms` of `measurements.json`, and the numbers with
    two decimals in the tables of `comparison.md` and `report.html`. MLflow's names: `run_id` of `registration.json`,
    and of `MLmodel` when and as what MLflow saved the model, and its size.
    """
    if path.name == "latency.json":
        return repr(sorted(_keys(json.loads(path.read_text())))).encode()
    if path.name in ("measurements.json", "registration.json"):
        described = json.loads(path.read_text())
        return json.dumps(
            {name: one for name, one in described.items() if name not in ("latency_ms", "run_id")}
        ).encode()
    if path.name in ("comparison.md", "report.html"):
        return re.sub(rb"\b\d+\.\d\d\b", b"", path.read_bytes())
    if path.name == "MLmodel":
        return re.sub(rb"(?m)^(model_uuid|utc_time_created|model_size_bytes): .*$", b"", path.read_bytes())
    return path.read_bytes()


def _keys(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _keys(one, f"{name}.{key}")
    else:
        yield name


def registered(uri: str) -> dict[str, Any]:
    """What MLflow holds, without the identifiers and times that it gave: runs by parent and name, and versions."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("iusp")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    keys = {
        run.info.run_id: (names.get(run.data.tags.get("mlflow.parentRunId", "")), run.info.run_name) for run in runs
    }
    found = {
        keys[run.info.run_id]: {
            "status": run.info.status,
            "params": run.data.params,
            "metrics": {
                name: sorted((one.step, one.value) for one in client.get_metric_history(run.info.run_id, name))
                for name in run.data.metrics
            },
            "tags": {name: value for name, value in run.data.tags.items() if name.startswith("iusp.")},
            "artifacts": sorted(_artifacts(client, run.info.run_id)),
        }
        for run in runs
    }
    assert len(found) == len(runs), "a run is there twice"
    versions = {
        int(version.version): {
            "run": keys[version.run_id],
            "tags": {name: value for name, value in version.tags.items() if not name.startswith("latency_ms")},
        }
        for version in client.search_model_versions("name = 'iusp-student'")
    }
    aliases = client.get_registered_model("iusp-student").aliases
    return {"runs": found, "versions": versions, "aliases": {name: int(version) for name, version in aliases.items()}}


def _artifacts(client: MlflowClient, run_id: str, path: str | None = None) -> Iterator[tuple[str, int | None]]:
    for one in client.list_artifacts(run_id, path):
        if one.is_dir:
            yield from _artifacts(client, run_id, one.path)
        else:
            yield one.path, 0 if Path(one.path).name in UNREPEATED else one.file_size


def run_undisturbed(folder: Path) -> dict[str, float]:
    """Run every step, and return how many seconds each was at work."""
    project, seconds = new_project(folder), {}
    for step, command in COMMANDS.items():
        process = start(project, *command)
        await_work(process, step)
        begun = time.monotonic()
        assert process.wait() == 0, step
        seconds[step] = time.monotonic() - begun
    return seconds
