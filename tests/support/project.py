"""A copy of the project with small settings, in which tests run commands as a user does."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.support import forked
from tests.support.local_servers import environment

ROOT = Path(__file__).parents[2]
Tried = Callable[..., None]
"""Adds a row to the fault suite's table: what was tried, how often, the outcome, how much was lost."""
# The smallest pipeline: every step is real, and the networks are poor.
SMALL: dict[str, Any] = {
    "dataset": {"clips": {"train": 40, "validate": 20, "test": 20}},
    "features": {"hop_length": 1600, "mel_bands": 32, "clips_per_shard": 16},
    "augmentation": {
        name: {"mixup": 0.5, "time_masks": 1, "time_mask_frames": 5, "band_masks": 1, "band_mask_bands": 4}
        for name in ("teacher", "views")
    },
    "teacher": {
        "tags": "both",
        "architecture": "plain",
        "parameters": 6500,
        "views": 2,
        "training": {"epochs": 3, "batch_size": 16},
    },
    "distillation": {"training": {"epochs": 3, "batch_size": 16}},
    "students": None,
    "evaluation": {"resamples": 50, "latency_runs": 2, "pictured_clips": 2, "calibration_clips": 8},
}
STUDENTS = {
    "small": {"architecture": "plain", "parameters": 2500, "method": "iusp", "seeds": [0, 1]},
    "other": {"architecture": "cnn_lstm", "parameters": 2500, "method": "sp+kd", "seeds": [0]},
}

STEPS = [
    ("dataset",),
    ("features",),
    ("teacher",),
    ("recipes",),
    ("student", "small"),
    ("student", "other"),
    ("evaluation",),
    ("registration",),
]


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return base | {
        key: merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in changes.items()
    }


def ran(output: str) -> list[str]:
    return re.findall(r"Running stage '([^']+)'", output)


class Project:
    """A copy of the project with small settings, in which commands are run as a user runs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if folder.exists():
            return
        folder.mkdir()
        for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, folder)
        for name in ("iusp", "components", "pipelines"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / ".dvc").mkdir()
        for name in ("config", ".gitignore", "plots.html"):
            shutil.copy(ROOT / ".dvc" / name, folder / ".dvc")
        (folder / "recordings").mkdir()
        for name in (".gitignore", "README.md"):
            shutil.copy(ROOT / "recordings" / name, folder / "recordings")
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        self.write_params(merged(params, SMALL) | {"students": STUDENTS})

    def params(self) -> dict[str, Any]:
        params: dict[str, Any] = yaml.safe_load((self.folder / "params.yaml").read_text())
        return params

    def write_params(self, params: dict[str, Any]) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def run(self, *command: str, check: bool = True, **extra: str) -> subprocess.CompletedProcess[str]:
        # The copy's own iusp is imported, so that a test may edit a module.
        env = environment() | {"PYTHONPATH": str(self.folder)} | extra
        if command[0] == "iusp":
            done = forked.run(command, self.folder, env)
        else:
            done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def commit(self) -> None:
        self.run("git", "init", "--quiet")
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "begin")
