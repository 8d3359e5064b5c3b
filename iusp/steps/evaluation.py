"""Step 5: how good every network is, what it costs, and a report that shows it."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from iusp import models
from iusp.config import Evaluation
from iusp.cost import milliseconds_per_clip, multiply_accumulates
from iusp.distillation.similarity import gram, row_normalised
from iusp.errors import InputError
from iusp.export import export
from iusp.features import FeatureSet, read_features
from iusp.files import atomic, code_digest, digest, read_json, sha256, work_folder, write_json
from iusp.maps import frames
from iusp.metrics import Level, bootstrap, curves, interval, score, score_table
from iusp.models.layers import Tagger
from iusp.plots import draw_comparison, draw_frame_similarities, draw_precision_recall, draw_training
from iusp.predictions import write_predictions
from iusp.progress import Progress
from iusp.records import read_record
from iusp.report import write_comparison, write_report
from iusp.scoring import truth_table
from iusp.taxonomy import Taxonomy, read_taxonomy
from iusp.training import predict


@dataclass(frozen=True)
class Inputs:
    """Folders that the earlier steps wrote.

    Attributes:
        dataset: of the dataset step.
        features: of the features step.
        teacher: of the teacher step.
        students: by name, what the student step wrote; several folders where several machines shared its seeds.
    """

    dataset: Path
    features: Path
    teacher: Path
    students: Mapping[str, Sequence[Path]]


def run(config: Evaluation, inputs: Inputs, output: Path, progress: Progress) -> dict[str, Any]:
    """Evaluate the teacher and every seed of every student on test (on validate where there is no test).

    Writes into `output`: `metrics.json` (the same bytes every time), `latency.json` (measured), `predictions/*.csv` in
    the challenge's format, `curves/*.csv`, `plots/*.png`, `comparison.md`, `report.html`, which needs nothing else, and
    all that registration needs: `features.json` and, for each network, `networks/<name>/` with its config and training
    record; of each student's best seed also the model as it will be registered.

    Args:
        config: intervals, cost and pictures.
        inputs: the earlier steps' folders.
        output: folder to write.
        progress: told of every network.

    Returns:
        What `metrics.json` says.

    Raises:
        InputError: a network was trained on other features or tags than those at hand.
    """
    taxonomy = read_taxonomy(inputs.dataset / "taxonomy.yaml")
    features = read_features(inputs.features)
    split = "test" if features.clips["test"] else "validate"
    seeds = {name: _seeds(folders) for name, folders in inputs.students.items()}
    students = {name: _described(by_seed) for name, by_seed in seeds.items()}
    folders = {"teacher": inputs.teacher} | {
        f"{name}-seed-{seed}": folder for name, by_seed in seeds.items() for seed, folder in by_seed.items()
    }
    # Of each student, the seed that is best on validate is the one that is registered and shown.
    chosen = {"teacher": "teacher"} | {name: f"{name}-seed-{one['best_seed']}" for name, one in students.items()}
    key = [config.model_dump(), features.digest, sha256(inputs.dataset / "labels.parquet"), code_digest()]
    key += [students, {name: sha256(folder / "weights.safetensors") for name, folder in folders.items()}]
    tags = read_json(inputs.teacher / "config.json", "tags")["tags"]
    # One thread sums in the same order on every machine.
    torch.set_num_threads(1)
    with work_folder(output, digest(key)) as work:
        networks, scores = _predict_all(folders, features, tags, split, work / "predictions", progress)
        judge = _Judge(config, taxonomy, inputs.dataset, features, split, tags)
        metrics = {
            "split": split,
            "clips": features.clips[split],
            "teacher": {"sha256": sha256(inputs.teacher / "weights.safetensors")}
            | _cost(inputs.teacher, features)
            | judge.evaluate(scores["teacher"]),
            "students": {
                name: student
                | _cost(folders[chosen[name]], features)
                | judge.evaluate(scores[chosen[name]])
                | judge.over_seeds({seed: scores[f"{name}-seed-{seed}"] for seed in student["validate_micro_auprc"]})
                for name, student in students.items()
            },
        }
        shown = {name: networks[network] for name, network in chosen.items()}
        latency = milliseconds_per_clip(shown, features.config, config.latency_runs)
        write_json(work / "metrics.json", metrics)
        write_json(work / "latency.json", latency)
        _draw(work, judge, {name: scores[network] for name, network in chosen.items()}, metrics)
        draw_training(
            {name: read_record(folders[network]) for name, network in chosen.items()}, work / "plots/training.png"
        )
        if config.pictured_clips:
            _draw_similarities(work / "plots/frame_similarities.png", shown, judge, features, config.pictured_clips)
        write_report(work / "report.html", metrics, latency, taxonomy, work / "plots")
        write_comparison(work / "comparison.md", metrics, latency)
        for name, folder in folders.items():
            _copy(folder, ("config.json", "record.csv"), work / "networks" / name)
        for name in students:
            export(folders[chosen[name]], work / "networks" / chosen[name] / "model")
        _copy(inputs.features, ("features.json",), work)
    return metrics


def _copy(source: Path, names: Sequence[str], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, target / name)


def _seeds(folders: Sequence[Path]) -> dict[int, Path]:
    """Return the folder of each seed of a student, in the seeds' order."""
    found = {int(seed.name.removeprefix("seed-")): seed for folder in folders for seed in folder.glob("seed-*")}
    if not found:
        raise InputError(f"{', '.join(map(str, folders))}: no trained student; run the student step")
    return dict(sorted(found.items()))


def _described(seeds: Mapping[int, Path]) -> dict[str, Any]:
    """Say how a student was taught, and which seed is best on validate."""
    configs = [read_json(path / "config.json", "method", "weights", "validate_micro_auprc") for path in seeds.values()]
    scores = {seed: config["validate_micro_auprc"] for seed, config in zip(seeds, configs, strict=True)}
    return {
        "method": configs[0]["method"],
        "weights": configs[0]["weights"],
        "validate_micro_auprc": {str(seed): score for seed, score in scores.items()},
        "best_seed": max(scores, key=lambda seed: scores[seed]),
    }


def _predict_all(
    folders: Mapping[str, Path], features: FeatureSet, tags: list[str], split: str, output: Path, progress: Progress
) -> tuple[dict[str, Tagger], dict[str, NDArray[np.float64]]]:
    networks, scores = {}, {}
    filenames, log_mel = features.filenames(split), features.log_mel(split)
    for done, (name, folder) in enumerate(folders.items()):
        networks[name], description = models.load(folder)
        if description["features_digest"] != features.digest or description["tags"] != tags:
            raise InputError(f"{folder}: was trained on other features or tags than those at hand; run its step again")
        scores[name] = predict(networks[name], log_mel)
        write_predictions(output / f"{name}.csv", filenames, scores[name], tags)
        progress("predictions", done + 1, len(folders))
    return networks, scores


def _cost(folder: Path, features: FeatureSet) -> dict[str, Any]:
    description = read_json(folder / "config.json", "architecture", "width", "tags", "parameters")
    macs = multiply_accumulates(
        description["architecture"], description["width"], len(description["tags"]), features.config
    )
    return {
        "architecture": description["architecture"],
        "parameters": description["parameters"],
        "macs": macs,
        "bytes": (folder / "weights.safetensors").stat().st_size,
    }


class _Judge:
    """Compares probabilities with the truth of one split."""

    def __init__(
        self,
        config: Evaluation,
        taxonomy: Taxonomy,
        dataset: Path,
        features: FeatureSet,
        split: str,
        tags: list[str],
    ) -> None:
        self.config, self.taxonomy, self.tags = config, taxonomy, tags
        self.levels: list[Level] = ["coarse", "fine"] if set(taxonomy.fine_tags) <= set(tags) else ["coarse"]
        self.truth = {level: truth_table(dataset, features, split, taxonomy, level) for level in self.levels}

    def table(self, scores: NDArray[np.float64], level: Level) -> NDArray[np.float64]:
        return score_table(scores, self.tags, self.taxonomy, level)

    def evaluate(self, scores: NDArray[np.float64]) -> dict[str, Any]:
        """AUPRCs by level, with 95 % bootstrap intervals over clips."""
        by_level: dict[str, Any] = {}
        for level in self.levels:
            arguments = self.truth[level], self.table(scores, level), self.taxonomy, level
            point = score(*arguments)
            samples = bootstrap(*arguments, self.config.resamples, self.config.seed)
            numbers: dict[str, Any] = {"micro_f1": point.micro_f1, "classwise": point.classwise}
            for name in ("micro_auprc", "macro_auprc"):
                low, high = interval(getattr(samples, name))
                numbers |= {name: getattr(point, name), f"{name}_low": low, f"{name}_high": high}
            by_level[level] = numbers
        return by_level

    def over_seeds(self, scores: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
        """Micro-averaged coarse AUPRC of each seed, their mean and standard deviation (0 of a single seed)."""
        values = {
            seed: score(self.truth["coarse"], self.table(one, "coarse"), self.taxonomy, "coarse").micro_auprc
            for seed, one in scores.items()
        }
        numbers = list(values.values())
        spread = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0
        return {"seeds": values, "seeds_mean": float(np.mean(numbers)), "seeds_std": spread}


def _draw(work: Path, judge: _Judge, scores: Mapping[str, NDArray[np.float64]], metrics: Mapping[str, Any]) -> None:
    by_network = {
        name: curves(judge.truth["coarse"], judge.table(one, "coarse"), judge.taxonomy, "coarse")
        for name, one in scores.items()
    }
    for name, by_category in by_network.items():
        micro = by_category["micro"]
        with atomic(work / "curves" / f"{name}.csv") as temporary:
            pd.DataFrame({"recall": micro.recall, "precision": micro.precision}).to_csv(temporary, index=False)
    draw_precision_recall(by_network, judge.taxonomy, work / "plots/precision_recall.png")
    rows = []
    for name, one in {"teacher": metrics["teacher"], **metrics["students"]}.items():
        coarse = one["coarse"]
        caption = f"{name} ({one['method']})" if "method" in one else name
        ends = coarse["micro_auprc"], coarse["micro_auprc_low"], coarse["micro_auprc_high"]
        rows.append((caption, *ends, list(one.get("seeds", {}).values())))
    draw_comparison(rows, f"micro-averaged AUPRC on {metrics['split']}", work / "plots/comparison.png")


def _draw_similarities(
    path: Path, networks: Mapping[str, Tagger], judge: _Judge, features: FeatureSet, count: int
) -> None:
    split = "test" if features.clips["test"] else "validate"
    truth = judge.truth["coarse"]
    # Clips with exactly one sound show best what repeats: the first of each category.
    alone = truth & (truth.sum(axis=1, keepdims=True) == 1)
    rows = np.sort(alone.argmax(axis=0)[alone.any(axis=0)])[:count]
    if not len(rows):
        return
    filenames, log_mel = features.filenames(split), features.log_mel(split)[rows].astype(np.float32)
    with torch.inference_mode():
        similarities = {
            name: row_normalised(gram(frames(network(torch.from_numpy(log_mel))[1][-1]))).numpy()
            for name, network in networks.items()
        }
    clips = []
    for index, row in enumerate(rows):
        tag = judge.taxonomy.coarse_tags[int(truth[row].argmax())]
        caption = f"{filenames[row]}: {tag.partition('_')[2]}"
        clips.append((caption, log_mel[index], {name: matrix[index] for name, matrix in similarities.items()}))
    draw_frame_similarities(clips, features.config.clip_seconds, path)
