"""Step 5: measure the quality and the cost of every network, and write a report."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from iusp.artifacts.base import seed_name
from iusp.artifacts.dataset import DatasetFolder
from iusp.artifacts.evaluation import EvaluationFolder
from iusp.artifacts.metrics import (
    Data,
    Latencies,
    Metrics,
    NetworkResult,
    StudentResult,
    TeacherResult,
    write_latencies,
)
from iusp.artifacts.networks import NetworkFolder, StudentFolder, TeacherFolder
from iusp.config.evaluation import Evaluation
from iusp.device.export import Recordings, write_models
from iusp.errors import InputError
from iusp.evaluation.cost import multiply_accumulates
from iusp.evaluation.judge import EvaluatedNetwork, Judge
from iusp.evaluation.pictures import draw_all
from iusp.evaluation.predictions import write_predictions
from iusp.evaluation.report import write_comparison, write_report
from iusp.evaluation.slices import read_circumstances, slice_scores, write_slices
from iusp.features.packed import read_features
from iusp.io.files import code_digest, digest, sha256, work_folder
from iusp.models.inference import predict
from iusp.registry.export import export
from iusp.reporter import Reporter

TEACHER = "teacher"
Evaluated = Mapping[str, EvaluatedNetwork]


@dataclass(frozen=True)
class Inputs:
    """Folders that the earlier steps wrote.

    Attributes:
        dataset: tables of the dataset step.
        recordings: audio files of the dataset step.
        features: folder of the features step.
        teacher: folder of the teacher step.
        students: folders that the student step wrote, by student; a student has several folders if several machines
            trained its seeds.
    """

    dataset: Path
    recordings: Path
    features: Path
    teacher: Path
    students: Mapping[str, Sequence[Path]]


@dataclass(frozen=True)
class Seeds:
    """The trained seeds of one student.

    Attributes:
        folders: folder of each seed, in ascending order.
    """

    folders: Mapping[int, StudentFolder]

    @classmethod
    def find(cls, folders: Sequence[Path]) -> "Seeds":
        """Find every `seed-<n>` in some folders.

        Raises:
            InputError: no folder has a trained student.
        """
        found = {int(path.name.removeprefix("seed-")): path for folder in folders for path in folder.glob("seed-*")}
        if not found:
            raise InputError(f"{', '.join(map(str, folders))}: no trained student; run the student step")
        return cls({seed: StudentFolder(found[seed]) for seed in sorted(found)})

    @property
    def best(self) -> int:
        """The seed that is best on validate."""
        return max(self.folders, key=lambda seed: self.folders[seed].config.validate_micro_auprc)


@dataclass(frozen=True)
class Networks:
    """All trained networks.

    Attributes:
        teacher: folder of the teacher.
        students: seeds of each student.
    """

    teacher: TeacherFolder
    students: Mapping[str, Seeds]

    @property
    def folders(self) -> dict[str, NetworkFolder]:
        """Folder of every network: `teacher`, and `<student>-seed-<n>` for every seed."""
        return {TEACHER: self.teacher} | {
            seed_name(name, seed): folder
            for name, seeds in self.students.items()
            for seed, folder in seeds.folders.items()
        }

    @property
    def best(self) -> dict[str, str]:
        """Name of the network to report: `teacher` for the teacher, and the best seed for each student."""
        return {TEACHER: TEACHER} | {name: seed_name(name, seeds.best) for name, seeds in self.students.items()}


def run(config: Evaluation, inputs: Inputs, output: Path, reporter: Reporter) -> Metrics:
    """Evaluate the teacher and every seed of every student on test (on validate where there is no test).

    Writes `EvaluationFolder`:

    - `metrics.json` (the same bytes every time) and `latency.json` (measured);
    - predictions in the challenge's format, and scores by hour, borough and sensor;
    - curves, pictures, and a report that needs no other file;
    - the config and the training record of every network, for registration;
    - the model of each student's best seed as it will be registered, with the files for devices and the evidence for
      promotion.

    Args:
        config: settings of intervals, cost and pictures.
        inputs: folders of the earlier steps.
        output: folder to write.
        reporter: receives the progress of each network.

    Returns:
        The content of `metrics.json`.

    Raises:
        InputError: a network was trained on other features or tags than those at hand.
    """
    dataset = DatasetFolder(inputs.dataset)
    networks = Networks(
        TeacherFolder(inputs.teacher), {name: Seeds.find(folders) for name, folders in inputs.students.items()}
    )
    judge = Judge.open(
        config,
        dataset.read_taxonomy(),
        dataset.path,
        read_features(inputs.features),
        networks.teacher.config.tags,
    )
    key = _key(judge, dataset, networks)
    # One thread adds numbers in the same order on every machine.
    torch.set_num_threads(1)
    with work_folder(output, key) as work:
        folder = EvaluationFolder(work)
        evaluated = _predict(networks, judge, folder, reporter)
        metrics = _metrics(networks, judge, dataset, evaluated)
        if metrics.absent_note:
            reporter.warning(metrics.absent_note)
        shown = {name: evaluated[network] for name, network in networks.best.items()}
        models = {name: folder.model(networks.best[name]) for name in networks.students}
        for name, model in models.items():
            shutil.rmtree(model.path, ignore_errors=True)  # left by a killed run
            export(shown[name].folder.path, model.path)
        recordings = Recordings(dataset.path, inputs.recordings, networks.teacher.config.predicts)
        latencies = write_models(shown, models, metrics, judge, recordings, reporter)
        metrics.write(folder.metrics_file)
        write_latencies(folder.latencies_file, latencies)
        _present(folder, metrics, latencies, judge, shown, dataset)
        for name, network in networks.folders.items():
            _copy(network.path, ("config.json", "record.csv"), folder.network(name))
        _copy(inputs.features, ("features.json",), work)
    return metrics


def _key(judge: Judge, dataset: DatasetFolder, networks: Networks) -> str:
    """Return the digest of everything that changes the output. Reads every training record to find damage early."""
    for folder in networks.folders.values():
        folder.record  # noqa: B018 (raises if it is damaged)
    return digest(
        [
            judge.config.model_dump(),
            judge.features.digest,
            code_digest(),
            [sha256(path) for path in (dataset.labels, dataset.index, dataset.summary_file)],
            {name: folder.config.model_dump(mode="json") for name, folder in networks.folders.items()},
            {name: sha256(folder.weights) for name, folder in networks.folders.items()},
        ]
    )


def _predict(networks: Networks, judge: Judge, output: EvaluationFolder, reporter: Reporter) -> Evaluated:
    """Predict the evaluated clips with every network, and write the predictions."""
    evaluated = {}
    filenames, log_mel = judge.filenames, judge.log_mel
    folders = networks.folders
    for done, (name, folder) in enumerate(folders.items(), 1):
        if folder.config.features_digest != judge.features.digest or folder.config.tags != judge.tags:
            raise InputError(
                f"{folder.path}: was trained on other features or tags than those at hand; run its step again"
            )
        tagger = folder.load()
        scores = predict(tagger, log_mel)
        if np.isnan(scores).any():
            raise InputError(
                f"{folder.path}: predicts NaN; its weights or the features are damaged, run their steps again"
            )
        write_predictions(output.predictions(name), filenames, scores, judge.tags)
        evaluated[name] = EvaluatedNetwork(folder, tagger, scores)
        reporter.progress("predictions", done, len(folders))
    return evaluated


def _metrics(networks: Networks, judge: Judge, dataset: DatasetFolder, evaluated: Evaluated) -> Metrics:
    """Measure the quality and the cost of every network."""
    return Metrics(
        data=Data(**dict(dataset.source), digest=dataset.digest, clips=judge.features.clips),
        split=judge.split,
        clips=judge.features.clips[judge.split],
        absent_tags=judge.absent_tags,
        teacher=TeacherResult(**dict(_result(evaluated[TEACHER], judge)), sha256=sha256(networks.teacher.weights)),
        students={name: _student(name, seeds, judge, evaluated) for name, seeds in networks.students.items()},
    )


def _result(network: EvaluatedNetwork, judge: Judge) -> NetworkResult:
    """Measure the quality and the cost of one network."""
    config = network.folder.config
    quality = judge.quality(network.scores)
    return NetworkResult(
        architecture=config.architecture,
        parameters=config.parameters,
        macs=multiply_accumulates(config.architecture, config.width, len(config.tags), judge.features.config),
        bytes=network.folder.weights.stat().st_size,
        coarse=quality["coarse"],
        fine=quality.get("fine"),
    )


def _student(name: str, seeds: Seeds, judge: Judge, evaluated: Evaluated) -> StudentResult:
    """Measure the best seed of a student in full, and the micro-averaged AUPRC of every other seed."""
    best = seeds.folders[seeds.best].config
    auprcs = {str(seed): judge.micro_auprc(evaluated[seed_name(name, seed)].scores) for seed in seeds.folders}
    values = list(auprcs.values())
    return StudentResult(
        **dict(_result(evaluated[seed_name(name, seeds.best)], judge)),
        method=best.method,
        weights=best.weights,
        validate_micro_auprc={str(seed): one.config.validate_micro_auprc for seed, one in seeds.folders.items()},
        best_seed=seeds.best,
        seeds=auprcs,
        seeds_mean=float(np.mean(values)),
        seeds_std=float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
    )


def _present(
    folder: EvaluationFolder,
    metrics: Metrics,
    latencies: Latencies,
    judge: Judge,
    shown: Evaluated,
    dataset: DatasetFolder,
) -> None:
    """Write the files for people: slices, pictures, tables and the report."""
    circumstances = read_circumstances(dataset.index, judge.filenames)
    scores = {name: judge.table(network.scores) for name, network in shown.items()}
    slices = slice_scores(
        circumstances,
        judge.truth["coarse"],
        scores,
        metrics.best_student,
        judge.taxonomy,
        judge.config.resamples,
        judge.config.seed,
    )
    write_slices(folder.slices, slices)
    draw_all(folder, metrics, judge, shown)
    write_report(folder, metrics, latencies, judge.taxonomy, slices)
    write_comparison(folder.comparison, metrics, latencies)


def _copy(source: Path, names: Sequence[str], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, target / name)
