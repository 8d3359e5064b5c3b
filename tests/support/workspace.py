"""A small pipeline that is run undisturbed once, and comparisons of other runs with it."""

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
# Files from which `repeatable` removes something.
NOT_REPEATABLE = (
    "latency.json",
    "measurements.json",
    "comparison.md",
    "report.html",
    "registration.json",
    "MLmodel",
)
# The command of each step, and the outputs of each step.
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
    """Copy the workspace as it is before a step; before registration, MLflow is empty."""
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
    """Return whether a step has finished its imports: it has a file of its working folder or of MLflow open."""
    with suppress(
        psutil.NoSuchProcess, FileNotFoundError, PermissionError
    ):  # the process or one of its files has just ended
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            if {"iusp", step} <= {Path(word).name for word in one.cmdline()}:
                held = [str(link.readlink()) for link in Path(f"/proc/{one.pid}/fd").iterdir()]
                return any("mlflow.db" in path if step == "registration" else ".work-" in path for path in held)
    return False


def await_work(process: "subprocess.Popen[str]", step: str) -> None:
    while process.poll() is None and not is_at_work(process, step):
        time.sleep(0.02)


def kill(process: "subprocess.Popen[str]") -> bool:
    """Kill a process and all that it has started; return whether it was still running."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def contents(folder: Path, *tops: str) -> dict[str, str]:
    """Return the SHA-256 of what `repeatable` leaves of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(repeatable(path)).hexdigest()
        for top in tops or ("data", "models", "reports")
        for path in sorted([folder / top, *(folder / top).rglob("*")])
        if path.is_file() and path.name != ".gitignore"
    }


def repeatable(path: Path) -> bytes:
    """Return a file's bytes without the parts that differ between two undisturbed runs.

    Measured times: all numbers of `latency.json`, `latency_ms` of `measurements.json`, and the numbers with
    two decimals in the tables of `comparison.md` and `report.html`. Identifiers and times from MLflow:
    `run_id` of `registration.json`; the time, identifier and size of the model in `MLmodel`.
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
    """Return the runs (by parent and name) and versions in MLflow, without its identifiers and times."""
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
            "tags": {
                name: value
                for name, value in run.data.tags.items()
                if name.startswith("iusp.") and name != "iusp.process"
            },
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
            yield one.path, 0 if Path(one.path).name in NOT_REPEATABLE else one.file_size


def run_undisturbed(folder: Path) -> dict[str, float]:
    """Run every step; return how many seconds each took after its imports."""
    project, seconds = new_project(folder), {}
    project.run("iusp", "recipes")  # a stage of DVC, and no step
    for step, command in COMMANDS.items():
        process = start(project, *command)
        await_work(process, step)
        begun = time.monotonic()
        assert process.wait() == 0, step
        seconds[step] = time.monotonic() - begun
    return seconds
