"""Step 5: how good every network is, what it costs, and a report that shows it."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from iusp import models
from iusp.artifacts.records import TrainingRecord
from iusp.artifacts.untyped import best_student
from iusp.config.evaluation import Evaluation
from iusp.data.taxonomy import Taxonomy, read_taxonomy
from iusp.device.conversion import NETS, WHOLE, write_onnx
from iusp.device.measurement import RUNTIMES, TORCH, latency, net_scores, whole_scores
from iusp.device.package import best_thresholds, write_package
from iusp.distillation.similarity import row_normalised
from iusp.errors import InputError
from iusp.evaluation.cost import multiply_accumulates
from iusp.evaluation.metrics import Level, bootstrap, curves, interval, score, score_table
from iusp.evaluation.plots import draw_comparison, draw_frame_similarities, draw_precision_recall, draw_training
from iusp.evaluation.predictions import write_predictions
from iusp.evaluation.report import write_comparison, write_report
from iusp.evaluation.scoring import truth_table
from iusp.evaluation.slices import SLICED, slice_scores
from iusp.features.log_mel import clip_length, frame_count
from iusp.features.packed import FeatureSet, labelled_clips, read_features, read_table
from iusp.io.files import atomic, code_digest, digest, sha256, work_folder, write_json
from iusp.models.inference import predict
from iusp.models.layers import Tagger
from iusp.models.maps import frames, gram
from iusp.registry.export import export
from iusp.reporter import Reporter


@dataclass(frozen=True)
class Inputs:
    """Folders that the earlier steps wrote.

    Attributes:
        dataset: of the dataset step.
        recordings: of the dataset step, the audio files.
        features: of the features step.
        teacher: of the teacher step.
        students: by name, what the student step wrote; several folders where several machines shared its seeds.
    """

    dataset: Path
    recordings: Path
    features: Path
    teacher: Path
    students: Mapping[str, Sequence[Path]]


def run(config: Evaluation, inputs: Inputs, output: Path, reporter: Reporter) -> dict[str, Any]:
    """Evaluate the teacher and every seed of every student on test (on validate where there is no test).

    Writes into `output`: `metrics.json` (the same bytes every time), `latency.json` (measured), `predictions/*.csv` in
    the challenge's format, `slices.csv` (how good by hour, borough and sensor), `curves/*.csv`, `plots/*.png`,
    `comparison.md`, `report.html`, which needs nothing else, and all that registration needs: `features.json` and, for
    each network, `networks/<name>/` with its config and training record; of each student's best seed also the model as
    it will be registered, with what a device needs (`device/`) and what a release is judged by (`evaluation/`).

    Args:
        config: intervals, cost and pictures.
        inputs: the earlier steps' folders.
        output: folder to write.
        reporter: told of every network.

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
    records = {name: TrainingRecord.read(folder).rows for name, folder in folders.items()}
    # Of each student, the seed that is best on validate is the one that is registered and shown.
    chosen = {"teacher": "teacher"} | {name: f"{name}-seed-{one['best_seed']}" for name, one in students.items()}
    key = [config.model_dump(), features.digest, code_digest()]
    key += [sha256(inputs.dataset / name) for name in ("labels.parquet", "index.parquet")]
    key += [students, {name: sha256(folder / "weights.safetensors") for name, folder in folders.items()}]
    tags = models.read_config(inputs.teacher, "teacher")["tags"]
    # One thread sums in the same order on every machine.
    torch.set_num_threads(1)
    with work_folder(output, digest(key)) as work:
        networks, scores = _predict_all(folders, features, tags, split, work / "predictions", reporter)
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
        models_of = {name: work / "networks" / chosen[name] / "model" for name in students}
        for name, model in models_of.items():
            shutil.rmtree(model, ignore_errors=True)  # of a killed run
            export(folders[chosen[name]], model)
        measured = _Exported(config, inputs, features, judge, shown, models_of).write(metrics, scores, chosen, reporter)
        write_json(work / "metrics.json", metrics)
        write_json(work / "latency.json", measured)
        _draw(work, judge, {name: scores[network] for name, network in chosen.items()}, metrics)
        draw_training({name: records[network] for name, network in chosen.items()}, work / "plots/training.png")
        if config.pictured_clips:
            _draw_similarities(work / "plots/frame_similarities.png", shown, judge, features, config.pictured_clips)
        best = best_student(students)
        sliced = slice_scores(
            _circumstances(inputs.dataset, features, split),
            judge.truth["coarse"],
            {name: judge.table(scores[network], "coarse") for name, network in chosen.items()},
            best,
            taxonomy,
            config.resamples,
            config.seed,
        )
        with atomic(work / "slices.csv") as temporary:
            sliced.to_csv(temporary, index=False, lineterminator="\n")
        write_report(work / "report.html", metrics, measured, taxonomy, work / "plots", sliced, best)
        write_comparison(work / "comparison.md", metrics, measured)
        for name, folder in folders.items():
            _copy(folder, ("config.json", "record.csv"), work / "networks" / name)
        _copy(inputs.features, ("features.json",), work)
    return metrics


def _circumstances(dataset: Path, features: FeatureSet, split: str) -> pd.DataFrame:
    """Return what is known of where and when a split's clips were recorded, row by row those of the features."""
    index = read_table(dataset / "index.parquet", "audio_filename", optional=SLICED).set_index("audio_filename")
    return index.reindex(features.filenames(split)).fillna("").astype(str)


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
    configs = [models.read_config(path, "student") for path in seeds.values()]
    scores = {seed: config["validate_micro_auprc"] for seed, config in zip(seeds, configs, strict=True)}
    return {
        "method": configs[0]["method"],
        "weights": configs[0]["weights"],
        "validate_micro_auprc": {str(seed): score for seed, score in scores.items()},
        "best_seed": max(scores, key=lambda seed: scores[seed]),
    }


def _predict_all(
    folders: Mapping[str, Path], features: FeatureSet, tags: list[str], split: str, output: Path, reporter: Reporter
) -> tuple[dict[str, Tagger], dict[str, NDArray[np.float64]]]:
    networks, scores = {}, {}
    filenames, log_mel = features.filenames(split), features.log_mel(split)
    for done, (name, folder) in enumerate(folders.items()):
        networks[name], description = models.load(folder)
        if description["features_digest"] != features.digest or description["tags"] != tags:
            raise InputError(f"{folder}: was trained on other features or tags than those at hand; run its step again")
        scores[name] = predict(networks[name], log_mel)
        if np.isnan(scores[name]).any():
            raise InputError(f"{folder}: says NaN; its weights or the features are damaged, run their steps again")
        write_predictions(output / f"{name}.csv", filenames, scores[name], tags)
        reporter.progress("predictions", done + 1, len(folders))
    return networks, scores


def _cost(folder: Path, features: FeatureSet) -> dict[str, Any]:
    description = models.read_config(folder)
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


class _Exported:
    """The students as devices get them, beside the teacher."""

    def __init__(
        self,
        config: Evaluation,
        inputs: Inputs,
        features: FeatureSet,
        judge: "_Judge",
        networks: Mapping[str, Tagger],
        models_of: Mapping[str, Path],
    ) -> None:
        self.config, self.inputs, self.features, self.judge = config, inputs, features, judge
        self.networks, self.models_of = networks, models_of

    def write(
        self,
        metrics: Mapping[str, Any],
        scores: Mapping[str, NDArray[np.float64]],
        chosen: Mapping[str, str],
        reporter: Reporter,
    ) -> dict[str, Any]:
        """Write `device/` and `evaluation/` of every student; return the latencies of all networks."""
        with tempfile.TemporaryDirectory() as temporary:
            # The teacher goes to no device; its files are for comparison.
            folders = {"teacher": Path(temporary)} | {name: one / "device" for name, one in self.models_of.items()}
            calibration = self._calibration()
            for done, (name, network) in enumerate(self.networks.items()):
                write_onnx(network, self.features.config, calibration, folders[name])
                reporter.progress("export", done + 1, len(self.networks))
            times = latency(self.networks, folders, self.features.config, self.config.latency_runs)
        clips = [self.inputs.recordings / name for name in self.features.filenames(metrics["split"])]
        students = {name: self.networks[name] for name in self.models_of}
        whole = whole_scores(students, folders, self.features.config, clips)
        for name, model in self.models_of.items():
            net = {TORCH: scores[chosen[name]]} | net_scores(model / "device", self.features.log_mel(metrics["split"]))
            parity = self._parity(net, NETS) | self._parity(whole[name], WHOLE)
            self._describe(name, model, metrics, parity)
            self._judged(name, model, metrics, parity, times[name], scores[chosen[name]])
        return times

    def _calibration(self) -> NDArray[np.float16]:
        train = self.features.log_mel("train")
        count = min(self.config.calibration_clips, len(train))
        spread: NDArray[np.float16] = train[np.linspace(0, len(train) - 1, count).round().astype(int)]
        return spread

    def _parity(self, scores: Mapping[str, NDArray[np.float64]], files: tuple[str, str]) -> dict[str, dict[str, float]]:
        """Compare a float32 file with PyTorch, and the int8 one with both."""
        auprc = {
            name: score(self.judge.truth["coarse"], self.judge.table(one, "coarse"), self.judge.taxonomy, "coarse")
            for name, one in scores.items()
        }
        parity = {name: {"max_difference": float(np.abs(scores[name] - scores[TORCH]).max())} for name in files}
        parity[files[1]]["auprc_loss"] = auprc[files[0]].micro_auprc - auprc[files[1]].micro_auprc
        return parity

    def _describe(
        self, name: str, model: Path, metrics: Mapping[str, Any], parity: Mapping[str, Mapping[str, float]]
    ) -> None:
        predicts = models.read_config(self.inputs.teacher, "teacher")["predicts"]
        validate = labelled_clips(self.features, self.inputs.dataset, "validate", predicts, self.judge.taxonomy)
        probabilities = predict(self.networks[name], validate.log_mel)
        thresholds = best_thresholds(validate.targets.numpy() > 0.5, validate.mask.numpy(), probabilities)
        device, config = model / "device", self.features.config
        facts = {
            "name": name,
            "student": metrics["students"][name],
            "teacher": metrics["teacher"],
            "split": metrics["split"],
            "clips": self.features.clips,
            "digest": self.features.digest,
            "categories": self.judge.taxonomy.coarse,
            "samples": clip_length(config),
            "frames": frame_count(config),
            "bytes": {file: (device / file).stat().st_size for file in parity},
            "parity": parity,
        }
        write_package(device, self.judge.tags, thresholds, config, self.config.license, facts)

    def _judged(
        self,
        name: str,
        model: Path,
        metrics: Mapping[str, Any],
        parity: Mapping[str, Mapping[str, float]],
        times: Mapping[str, Any],
        scores: NDArray[np.float64],
    ) -> None:
        """Write what promotion is decided by: predictions, truth and measurements."""
        folder, filenames = model / "evaluation", self.features.filenames(metrics["split"])
        truth, tags = self.judge.truth["coarse"], list(self.judge.taxonomy.coarse_tags)
        write_predictions(folder / "predictions.csv", filenames, scores, self.judge.tags)
        with atomic(folder / "truth.csv") as temporary:
            table = pd.DataFrame(truth.astype(int), columns=tags)
            table.insert(0, "audio_filename", filenames)
            table.to_csv(temporary, index=False, lineterminator="\n")
        student = metrics["students"][name]
        files = dict(zip(RUNTIMES[1:], zip(NETS, WHOLE, strict=True), strict=True))
        write_json(
            folder / "measurements.json",
            {
                "split": metrics["split"],
                "digest": sha256(folder / "truth.csv"),
                "coarse": student["coarse"],
                "parameters": student["parameters"],
                "macs": student["macs"],
                "bytes": {file: (model / "device" / file).stat().st_size for file in parity},
                "latency_ms": {
                    file: times[runtime][what]
                    for runtime, pair in files.items()
                    for file, what in zip(pair, ("network", "audio_to_tags"), strict=True)
                },
                "parity": parity,
                "tags": self.judge.tags,
                "features": self.features.config.model_dump(mode="json"),
            },
        )


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
