"""The small copy for `make run QUICK=1` has its own settings and touches nothing of the project."""

import subprocess
import sys
from pathlib import Path

import pytest

from iusp.config.params import load
from scripts.quick import prepare
from tests.support.project import ROOT, Project

pytestmark = pytest.mark.integration


def test_the_copy_has_few_clips_and_one_seed_and_leaves_the_project_as_it_is(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    (project.folder / "params-quick.yaml").write_text((ROOT / "params-quick.yaml").read_text())
    before = (project.folder / "params.yaml").read_bytes()
    quick = project.folder / "quick"
    prepare(project.folder, quick)
    prepare(project.folder, quick)
    config, full = load(quick / "params.yaml"), load(project.folder / "params.yaml")
    assert config.dataset.clips.train == 160
    assert config.students.keys() == full.students.keys()
    assert all(student.seeds == [0] for student in config.students.values())
    assert (project.folder / "params.yaml").read_bytes() == before
    # DVC sees the pipeline, and every dependency that is no output.
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list"], cwd=quick, capture_output=True, text=True, check=False
    )
    assert [line.split()[0] for line in done.stdout.splitlines()][:2] == ["dataset", "features"], done.stderr
    assert (quick / "iusp/steps/dataset.py").read_bytes() == (project.folder / "iusp/steps/dataset.py").read_bytes()


def test_the_projects_own_settings_give_a_valid_quick_run(tmp_path: Path) -> None:
    prepare(ROOT, tmp_path / "quick")
    assert load(tmp_path / "quick/params.yaml").dataset.source == "embedded"
