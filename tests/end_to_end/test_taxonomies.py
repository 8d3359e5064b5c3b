"""Vocabularies of any size and shape go from the dataset to the registry."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml

from iusp.data.taxonomy import read_taxonomy
from tests.support.project import Project

pytestmark = pytest.mark.slow

CLIPS = {"train": 24, "validate": 8, "test": 8}
RATE = 16_000
AWKWARD = ["dog, small", "engine (idle)", "a&b|c", 'the "saw"', "Straße"]


def categories(count: int) -> dict[Any, str]:
    return {number: AWKWARD[number % len(AWKWARD)] for number in range(1, count + 1)}


TAXONOMIES: dict[str, tuple[dict[str, Any], str]] = {
    "1 class, no fine tags": ({"coarse": {"dog": "bark"}}, "coarse"),
    "1 class, 1 fine tag": ({"coarse": {1: "dog"}, "fine": {1: {1: "bark"}}}, "both"),
    "3 classes, one has only X": (
        {"coarse": categories(3), "fine": {1: {1: "a", 2: "b", "X": "?"}, 2: {"X": "kind unknown"}, 3: {1: "c"}}},
        "fine",
    ),
    "3 classes, one without fine tags": ({"coarse": categories(3), "fine": {1: {1: "a"}, 2: {1: "b"}}}, "both"),
    "20 classes": ({"coarse": categories(20), "fine": {n: {1: "a", "X": "b"} for n in range(1, 21)}}, "both"),
    "200 classes, no fine tags": ({"coarse": categories(200)}, "coarse"),
}


def write_recordings(folder: Path, document: dict[str, Any]) -> None:
    """Write a data set in which each tag is in about a third of the clips, and all tags are in the first clip."""
    (folder / "audio").mkdir(parents=True)
    (folder / "taxonomy.yaml").write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    taxonomy = read_taxonomy(folder / "taxonomy.yaml")
    rng = np.random.default_rng(0)
    rows = []
    for split, count in CLIPS.items():
        for number in range(count):
            name = f"{split}{number}.wav"
            present = {tag: int(number == 0 or rng.random() < 0.3) for tag in taxonomy.all_fine_tags}
            for category, tag in taxonomy.coarse.items():
                kinds = taxonomy.category_tags(category)
                present[tag] = max(present[kind] for kind in kinds) if kinds else int(number == 0 or rng.random() < 0.3)
            soundfile.write(folder / "audio" / name, 0.1 * rng.standard_normal(RATE), RATE)
            rows.append(
                {"split": split, "audio_filename": name} | {f"{tag}_presence": on for tag, on in present.items()}
            )
    pd.DataFrame(rows).to_csv(folder / "annotations.csv", index=False)


@pytest.mark.parametrize("name", TAXONOMIES)
def test_from_the_dataset_to_the_registry(name: str, tmp_path: Path) -> None:
    document, predicts = TAXONOMIES[name]
    write_recordings(tmp_path / "rec", document)
    project = Project(tmp_path / "project")
    params = project.params()
    params["dataset"] |= {"source": "folder", "path": str(tmp_path / "rec")}
    params["features"]["clip_seconds"] = 1
    params["teacher"] |= {"tags": predicts, "views": 1, "parameters": 60_000}
    for section in ("teacher", "distillation"):
        params[section]["training"] |= {"epochs": 1, "batch_size": 8}
    params["students"] = {
        "small": {"architecture": "plain", "parameters": 50_000, "method": "iusp+kd", "seeds": [0]},
    }
    params["registration"]["gate"]["floors"] = {"micro_auprc": 0, "macro_auprc": 0}
    params["registration"]["gate"]["budgets"] = {"parameters": 10**6, "macs": 10**9, "bytes": {}, "latency_ms": {}}
    params["registration"]["gate"]["parity"]["auprc_loss"] = 1
    taxonomy = read_taxonomy(tmp_path / "rec/taxonomy.yaml")
    params["registration"]["gate"]["floors"]["classes"] = dict.fromkeys(taxonomy.coarse_tags[:3], 0)
    project.write_params(params)
    for step in ("dataset", "features", "teacher", "recipes", "evaluation", "registration"):
        if step == "evaluation":
            project.run("iusp", "student", "small")
        project.run("iusp", step)
    summary = json.loads((project.folder / "data/dataset/dataset.json").read_text())
    assert summary["clips"] == CLIPS
    metrics = json.loads((project.folder / "reports/evaluation/metrics.json").read_text())
    coarse = metrics["students"]["small"]["coarse"]
    assert coarse["classwise"].keys() == taxonomy.coarse.keys()
    assert coarse["macro_auprc"] == pytest.approx(np.mean(list(coarse["classwise"].values())))
    assert metrics["absent_tags"] == []
    assert min(coarse["classwise"].values()) > 0
    assert ("fine" in metrics["students"]["small"]) == (predicts != "coarse")
    shown = json.loads(project.run("iusp", "models", "show", "1", "--json").stdout)
    assert shown["gate"]["reasons"] == []
    project.run("iusp", "promote", "1")
    rows = project.run("iusp", "tag", str(tmp_path / "rec/audio/test0.wav"), "--json").stdout.splitlines()
    assert [list(json.loads(row)["probabilities"]) for row in rows] == [
        {"coarse": list(taxonomy.coarse_tags), "fine": list(taxonomy.fine_tags)}.get(
            predicts, [*taxonomy.coarse_tags, *taxonomy.fine_tags]
        )
    ]
