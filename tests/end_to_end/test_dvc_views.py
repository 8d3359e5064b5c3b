"""What DVC shows of the pipeline: models, metrics, plots."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.project import ROOT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def graph() -> dict:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())


def test_the_artifacts_are_the_teacher_and_every_student(graph: dict) -> None:
    students = yaml.safe_load((ROOT / "params.yaml").read_text())["students"]
    paths = {name: entry["path"] for name, entry in graph["artifacts"].items()}
    assert paths == {"teacher": "models/teacher"} | {name: f"models/students/{name}" for name in students}
    assert all(entry["type"] == "model" and entry["desc"] for entry in graph["artifacts"].values())


def test_latency_is_no_metric_because_it_differs_from_run_to_run(graph: dict) -> None:
    assert graph["metrics"] == ["reports/evaluation/metrics.json"]


def test_plots_need_no_network(tmp_path: Path) -> None:
    def dvc(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=tmp_path, check=True, capture_output=True)

    dvc("init", "--no-scm")
    for name in ("config", "plots.html"):
        (tmp_path / ".dvc" / name).write_text((ROOT / ".dvc" / name).read_text())
    (tmp_path / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    (tmp_path / "record.csv").write_text("epoch,loss\n1,0.5\n2,0.25\n")
    (tmp_path / "dvc.yaml").write_text("plots:\n  - record.csv:\n      x: epoch\n      y: loss\n")
    dvc("plots", "show")
    page = (tmp_path / "dvc_plots/index.html").read_text()
    assert "vegaEmbed('#" in page
    assert '"loss": "0.25"' in page
    assert re.findall(r"<(?:script|link)[^>]+(?:src|href)=", page) == []
