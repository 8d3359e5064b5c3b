"""Builders of registered versions, with files and scores as the evaluation and registration steps write them."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from iusp.config.evaluation import Evaluation
from iusp.config.params import load
from iusp.config.registration import Gate
from iusp.data.taxonomy import read_taxonomy
from iusp.evaluation.metrics import score
from iusp.evaluation.predictions import write_predictions
from iusp.io.files import write_json
from iusp.registry.versions import Registry, register
from iusp.reporter import Reporter
from tests.support.project import ROOT, merged

TAXONOMY = read_taxonomy(Path(str(files("iusp.data") / "taxonomy.yaml")))
CONFIG = load(ROOT / "params.yaml")
GATE: Gate = CONFIG.registration.gate
EVALUATION = Evaluation(resamples=200, seed=0, calibration_clips=1, latency_runs=1, pictured_clips=0)
GOOD, BETTER, BAD = 0.3, 0.25, 0.6  # noise of the scores of a good, a better and a bad network
DEVICE_FILES = ("net_float32.onnx", "net_int8.onnx", "float32.onnx", "int8.onnx")


def write_evidence(
    folder: Path, noise: float = 0.3, seed: int = 1, clips: int = 80, changes: dict[str, Any] | None = None
) -> None:
    """Write `evaluation/` of a network whose scores are the ground truth plus noise.

    Args:
        folder: folder to write.
        noise: standard deviation of the noise.
        seed: seed of the noise.
        clips: number of clips.
        changes: values to replace in the measurements.
    """
    tags = list(TAXONOMY.coarse_tags)
    truth = np.random.default_rng(0).random((clips, len(tags))) < 0.3
    scores = np.clip(0.5 * truth + 0.25 + noise * np.random.default_rng(seed).normal(size=truth.shape), 0, 1)
    points = score(truth, scores, TAXONOMY, "coarse")
    names = [f"{clip:03}.wav" for clip in range(clips)]
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.csv", names, scores, tags)
    table = pd.DataFrame(truth.astype(int), columns=tags)
    table.insert(0, "audio_filename", names)
    table.to_csv(folder / "truth.csv", index=False)
    quality = {f"{kind}_auprc{end}": getattr(points, f"{kind}_auprc") for kind in ("micro", "macro") for end in ENDS}
    losses = {file: {"auprc_loss": 0.001} if "int8" in file else {} for file in DEVICE_FILES}
    measured = {
        "split": "test",
        "digest": "0123",
        "coarse": quality | {"micro_f1": points.micro_f1, "classwise": points.classwise},
        "parameters": 5568,
        "macs": 1_600_000,
        "bytes": {"float32.onnx": 50_000, "int8.onnx": 20_000},
        "latency_ms": {file: {"p50": 1.2, "p95": 2} for file in DEVICE_FILES},
        "parity": {file: {"max_difference": 1e-6} | loss for file, loss in losses.items()},
        "tags": tags,
        "features": CONFIG.features.model_dump(mode="json"),
    }
    (folder / "measurements.json").write_text(json.dumps(merged(measured, changes or {})))


ENDS = ("", "_low", "_high")


def register_versions(registry: Registry, folder: Path, noises: list[float | None]) -> list[int]:
    """Register a version for each noise, as the registration step does."""
    client = registry.client
    experiment = client.get_experiment_by_name("evidence")
    experiment_id = experiment.experiment_id if experiment else client.create_experiment("evidence")
    return [
        register_version(registry, folder / f"{number}", experiment_id, noise) for number, noise in enumerate(noises)
    ]


def register_version(
    registry: Registry,
    model: Path,
    experiment_id: str,
    noise: float | None,
    source: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Register a version; without noise, it has no evaluation. `source` holds the tags that name its data."""
    (model / "extra_files").mkdir(parents=True)
    for name in ("weights.safetensors", "config.json"):
        (model / "extra_files" / name).write_text(f"{registry.model_name} {model} {name}")
    if noise is not None:
        write_evidence(model / "evaluation", noise)
    run = registry.client.create_run(experiment_id)
    tags = {"student": model.name, "method": "iusp", "parameters": 5568, "iusp.data": "0123456789abcdef"}
    tags |= {f"micro_auprc{end}": 0.7 for end in ENDS} | {f"macro_auprc{end}": 0.6 for end in ENDS}
    tags |= {"latency_ms.float32.onnx": 1.234, "bytes.int8.onnx": 20_000}
    return register(registry.client, registry.model_name, run.info.run_id, model, {**tags, **source}, Reporter())


def evaluated(folder: Path, noise: float) -> None:
    """Write what registration reads from the dataset and evaluation steps, for one student."""
    write_json(folder / "dataset/dataset.json", {"digest": "data"})
    for name in ("quarantine.csv", "unmatched.csv"):
        (folder / "dataset" / name).write_text("")
    evaluation = folder / "evaluation"
    network = {"parameters": 5568, "macs": 1_600_000, "bytes": 22_272, "architecture": "plain", "sha256": "0123"}
    auprcs = {f"{kind}_auprc{end}": 0.7 for kind in ("micro", "macro") for end in ("", "_low", "_high")}
    network["coarse"] = {**auprcs, "micro_f1": 0.7, "classwise": {}}
    student = network | {"method": "iusp", "weights": {"iusp": 100.0}, "best_seed": 0, "seeds": {"0": 0.7}}
    student |= {"validate_micro_auprc": {"0": 0.7}, "seeds_mean": 0.7, "seeds_std": 0.0}
    metrics = {"split": "test", "clips": 8, "absent_tags": [], "teacher": network, "students": {"small": student}}
    metrics["data"] = {"name": "embedded", "digest": "data", "clips": {"test": 8}}
    write_json(evaluation / "metrics.json", metrics)
    for name in ("latency.json", "report.html", "plots/one.png"):
        (evaluation / name).parent.mkdir(exist_ok=True)
        (evaluation / name).write_text("")
    write_json(evaluation / "features.json", {"digest": "features"})
    for name in ("teacher", "small-seed-0"):
        write_json(evaluation / "networks" / name / "config.json", {})
        (evaluation / "networks" / name / "record.csv").write_text(
            "epoch,learning_rate,loss_labels,validate_micro_auprc\n1,0.001,0.5,0.7\n"
        )
    model = evaluation / "networks/small-seed-0/model"
    (model / "extra_files").mkdir(parents=True)
    for name in ("weights.safetensors", "config.json"):
        (model / "extra_files" / name).write_text(f"{folder} {name}")
    write_evidence(model / "evaluation", noise)
