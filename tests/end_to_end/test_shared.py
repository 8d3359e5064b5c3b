"""The pipeline and the metric on the real annotations and recordings in ../shared/data (`make test-shared`)."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.project import ROOT, Project

DATA = ROOT.parent / "shared" / "data"
pytestmark = pytest.mark.shared


def test_the_pipeline_runs_on_real_recordings_where_they_lie(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    params = project.params()
    params["dataset"] |= {"source": "folder", "path": str(DATA / "esc-ust")}
    params["students"] = {"small": params["students"]["small"]}
    project.write_params(params)
    project.commit()
    project.run("dvc", "repro")
    summary = json.loads((project.folder / "data/dataset/dataset.json").read_text())
    assert summary["clips"] == {"train": 1500, "validate": 300, "test": 300}
    assert summary["quarantined"]["count"] == summary["missing"]["count"] == 0
    metrics = json.loads((project.folder / "reports/evaluation/metrics.json").read_text())
    assert metrics["split"] == "test"
    # Three epochs of a small network are better than chance, which is the share of positives.
    positives = summary["positives"]["test"]
    share = np.mean([positives[tag] for tag in positives if "-" not in tag.partition("_")[0]]) / 300
    assert metrics["teacher"]["coarse"]["micro_auprc"] > 1.3 * share
    assert "small" in project.run("iusp", "results").stdout
    assert project.run("git", "status", "--porcelain").stdout.split() == ["??", "dvc.lock"]


@pytest.mark.parametrize("level", ["coarse", "fine"])
@pytest.mark.parametrize("coarse", ["from-fine", "as-published"])
def test_score_of_real_annotations(tmp_path: Path, level: str, coarse: str) -> None:
    source = DATA / "sonyc-ust-2019"
    rows = pd.read_csv(source / "annotations.csv", low_memory=False)
    truth = rows[(rows["split"] == "validate") & (rows["annotator_id"] == 0)]
    assert len(truth) == 443
    tags = [name.removesuffix("_presence") for name in truth if name.endswith("_presence")]
    fine = [tag for tag in tags if "-" in tag.partition("_")[0]]
    # Each score is a different one: the metric's curve depends on how it orders ties.
    random = np.random.default_rng(0)
    scores = pd.DataFrame({tag: truth[f"{tag}_presence"] * 0.5 + random.uniform(0.05, 0.45, 443) for tag in tags})
    if coarse == "from-fine":
        for tag in set(tags) - set(fine):
            scores[tag] = scores[[name for name in fine if name.startswith(f"{tag[0]}-")]].max(axis=1)
    scores.insert(0, "audio_filename", truth["audio_filename"])
    scores.to_csv(tmp_path / "predictions.csv", index=False)
    options = ["--annotations", str(source / "annotations.csv"), "--split", "validate", "--level", level]
    options += ["--taxonomy", str(source / "dcase-ust-taxonomy.yaml"), "--coarse", coarse]
    project = Project(tmp_path / "project")
    printed = json.loads(project.run("iusp", "score", str(tmp_path / "predictions.csv"), *options).stdout)
    # Every true tag is above every other.
    # X tags are no thresholds, so at the fine level one of them may lie just below the threshold nearest to 0.5.
    assert printed["micro_f1"] == 1.0 if level == "coarse" else printed["micro_f1"] > 0.99
    assert printed["micro_auprc"] > 0.995
    assert len(printed["classwise"]) == 8
