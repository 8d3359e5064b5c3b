"""`make` finds an interpreter that fits, and says in one line when there is none."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.project import ROOT

pytestmark = pytest.mark.integration


def find(folder: Path, *candidates: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts/find-python"), *candidates]
    env = {"PATH": f"{folder}:/usr/bin:/bin"}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def interpreter(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_the_first_candidate_that_runs_and_fits_is_found(tmp_path: Path) -> None:
    # What pyenv puts on the path for a version that is not selected.
    interpreter(tmp_path / "python3.13", "echo 'pyenv: python3.13: command not found' >&2; exit 127")
    interpreter(tmp_path / "python3.11", f'exec {sys.executable} "$@"')
    done = find(tmp_path, "python3.13", "python3.11")
    assert (done.stdout.strip(), done.returncode) == (sys.executable, 0)


@pytest.mark.parametrize("version", ["(3, 10)", "(3, 15)"])
def test_another_version_is_passed_over(tmp_path: Path, version: str) -> None:
    script = f'shift; exec {sys.executable} -c "import sys; sys.version_info = {version}; $1"'
    interpreter(tmp_path / "python3.99", script)
    done = find(tmp_path, "python3.99")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("iusp needs Python 3.11 to 3.14")
    assert "python3.99; name yours: make PYTHON=" in done.stderr
    assert done.stderr.count("\n") == 1
