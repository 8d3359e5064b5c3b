"""How much of the time of `make run` is overhead: DVC, imports and MLflow.

DVC runs the pipeline with the settings of params.yaml in a copy of the project. The process of each step records when
it started, how long its imports took, and how long the step itself took.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iusp.cli.console import readable_failures

ROOT = Path(__file__).parents[2]
WORK = ROOT / "data" / "performance"
POOLS = ("dataset", "features", "student")  # steps with worker processes, which import the step again
SHIM = '#!/bin/sh\nBEGAN=$(date +%s.%N) exec "{python}" -m benchmarks.speed.overhead "$@"\n'


def step(arguments: list[str]) -> None:
    """Run `iusp` with these arguments, and append the times to the file in the environment variable TIMES."""
    times: dict[str, Any] = defaultdict(float, step=" ".join(arguments))
    start = time.time()
    module = importlib.import_module(f"iusp.steps.{arguments[0]}")
    times["imports"] = time.time() - start
    times["start"] = start - float(os.environ["BEGAN"])

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*positional: Any, **named: Any) -> Any:
            began = time.time()
            try:
                return function(*positional, **named)
            finally:
                times[name] += time.time() - began

        return call

    module.run = timed("run", module.run)  # type: ignore[attr-defined]
    if arguments[0] in ("teacher", "student"):
        from iusp.registry.tracking import StepRun

        StepRun.row = timed("mlflow", StepRun.row)  # type: ignore[method-assign]
    from iusp.cli.main import main

    with readable_failures():
        main(arguments, standalone_mode=False)
    times["whole"] = time.time() - float(os.environ["BEGAN"])
    with Path(os.environ["TIMES"]).open("a") as stream:
        print(json.dumps(times), file=stream)


def project() -> Path:
    """Copy what DVC needs into an empty folder, and return the folder."""
    folder = WORK / "project"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    for name in ("iusp", "recordings"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    shim = folder / "bin" / "iusp"
    shim.parent.mkdir()
    shim.write_text(SHIM.format(python=sys.executable))
    shim.chmod(0o755)
    return folder


def main() -> None:
    """Measure and print; with arguments, run a step."""
    if len(sys.argv) > 1:
        step(sys.argv[1:])
        return
    from benchmarks.speed.timing import Figure, Report

    folder = project()
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {
        "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{folder}:{ROOT}",  # the copy's iusp
        "TIMES": str(folder / "times.jsonl"),
    }
    start = time.time()
    subprocess.run(["dvc", "repro"], cwd=folder, env=environment, check=True, stdout=sys.stderr)
    whole = time.time() - start
    steps = [json.loads(line) for line in (folder / "times.jsonl").read_text().splitlines()]
    rows = [
        [
            "step",
            "total, s",
            "computing, s",
            "imports and connection to MLflow, s",
            "start of workers, s",
            "logging to MLflow, s",
        ]
    ]
    computing = 0.0
    for one in steps:
        workers = one["imports"] if one["step"].split()[0] in POOLS else 0.0
        mlflow = one.get("mlflow", 0.0)
        own = one["run"] - workers - mlflow
        computing += own
        parts = (one["whole"], own, one["whole"] - one["run"], workers, mlflow)
        rows.append([one["step"], *(f"{seconds:.1f}" for seconds in parts)])
    dvc = whole - sum(one["whole"] for one in steps)
    rows.append(["DVC", f"{dvc:.1f}", "", "", "", ""])
    rows.append(["all", f"{whole:.1f}", f"{computing:.1f}", "", "", ""])
    report = Report()
    share = 100 * (whole - computing) / computing
    report.figures.append(
        Figure("make run: overhead ÷ computing time", share, share, share, " %", target=25, at_most=True)
    )
    report.notes.append(
        "Computing time is the time inside the steps. It includes the reading and writing of files. It does not "
        "include the imports of worker processes or the logging of epochs to MLflow. "
        f"`make run` takes {whole:.0f} s. Of this time, DVC itself (its start, checksums and cache) takes {dvc:.0f} s, "
        f"and imports and MLflow take {whole - dvc - computing:.0f} s."
    )
    report.profiles["make run, by step"] = rows
    report.print()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
