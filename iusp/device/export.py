"""Export the students for devices and for the registry: ONNX files, package, measurements, evidence."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from iusp.artifacts.evaluation import NETS, WHOLE, Measurements, ModelFolder, Parity
from iusp.artifacts.metrics import Latencies, Metrics, NetworkTimes
from iusp.config.base import TagSet
from iusp.device.conversion import write_onnx
from iusp.device.measurement import TORCH, measure_latencies, net_scores, whole_scores
from iusp.device.package import CardFacts, best_thresholds, write_package
from iusp.evaluation.judge import EvaluatedNetwork, Judge
from iusp.evaluation.metrics import Floats
from iusp.evaluation.predictions import CLIP, write_predictions
from iusp.features.packed import FeatureSet, labelled_clips
from iusp.io.files import atomic, sha256
from iusp.models.inference import predict
from iusp.reporter import Reporter


@dataclass(frozen=True)
class Recordings:
    """The input for the thresholds and for the comparison of end-to-end files.

    Attributes:
        dataset: folder with the tables of the dataset step.
        audio: folder with the audio files of the dataset step.
        predicts: set of tags that the networks predict.
    """

    dataset: Path
    audio: Path
    predicts: TagSet


def write_models(
    shown: Mapping[str, EvaluatedNetwork],
    models: Mapping[str, ModelFolder],
    metrics: Metrics,
    judge: Judge,
    recordings: Recordings,
    reporter: Reporter,
) -> Latencies:
    """Write the files for devices and the evidence for promotion of every student.

    Args:
        shown: the teacher and the best seed of every student, by name.
        models: folder to write for each student.
        metrics: quality and cost of every network.
        judge: truth of the evaluated clips.
        recordings: the recordings and their labels.
        reporter: receives the progress of each network.

    Returns:
        The measured times of every network.
    """
    features = judge.features
    with tempfile.TemporaryDirectory() as temporary:
        # The teacher runs on no device; its files are only timed.
        folders = {name: models[name].device if name in models else Path(temporary) for name in shown}
        calibration = _calibration_clips(features, judge.config.calibration_clips)
        for done, (name, network) in enumerate(shown.items(), 1):
            write_onnx(network.tagger, features.config, calibration, folders[name])
            reporter.progress("export", done, len(shown))
        taggers = {name: network.tagger for name, network in shown.items()}
        latencies = measure_latencies(taggers, folders, features.config, judge.config.latency_runs)
    students = {name: taggers[name] for name in models}
    clips = [recordings.audio / name for name in judge.filenames]
    whole = whole_scores(students, folders, features.config, clips)
    for name, model in models.items():
        net = {TORCH: shown[name].scores} | net_scores(model.device, judge.log_mel)
        parity = _parity(net, NETS, judge) | _parity(whole[name], WHOLE, judge)
        _write_package(name, shown[name], model, metrics, judge, recordings, parity)
        _write_evidence(name, shown[name], model, metrics, judge, latencies[name], parity)
    return latencies


def _calibration_clips(features: FeatureSet, count: int) -> NDArray[np.float16]:
    """Return log-mel of training clips, evenly spread over the split."""
    train = features.log_mel("train")
    spread: NDArray[np.float16] = train[np.linspace(0, len(train) - 1, min(count, len(train))).round().astype(int)]
    return spread


def _parity(scores: Mapping[str, Floats], files: tuple[str, str], judge: Judge) -> dict[str, Parity]:
    """Compare a float32 file with PyTorch, and the int8 file with both."""
    differences = {name: float(np.abs(scores[name] - scores[TORCH]).max()) for name in files}
    float32, int8 = files
    loss = judge.micro_auprc(scores[float32]) - judge.micro_auprc(scores[int8])
    return {
        float32: Parity(max_difference=differences[float32]),
        int8: Parity(max_difference=differences[int8], auprc_loss=loss),
    }


def _write_package(
    name: str,
    network: EvaluatedNetwork,
    model: ModelFolder,
    metrics: Metrics,
    judge: Judge,
    recordings: Recordings,
    parity: Mapping[str, Parity],
) -> None:
    """Write the files beside the ONNX files."""
    features = judge.features
    validate = labelled_clips(features, recordings.dataset, "validate", recordings.predicts, judge.taxonomy)
    probabilities = predict(network.tagger, validate.log_mel)
    thresholds = best_thresholds(validate.targets.numpy() > 0.5, validate.mask.numpy(), probabilities)
    facts = CardFacts(
        name=name,
        metrics=metrics,
        categories=judge.taxonomy.coarse,
        features_digest=features.digest,
        bytes=_sizes(model),
        parity=parity,
    )
    write_package(model.device, dict(zip(judge.tags, thresholds, strict=True)), features.config, facts)


def _write_evidence(
    name: str,
    network: EvaluatedNetwork,
    model: ModelFolder,
    metrics: Metrics,
    judge: Judge,
    times: NetworkTimes,
    parity: Mapping[str, Parity],
) -> None:
    """Write the files that decide about a promotion: predictions, truth and measurements."""
    write_predictions(model.predictions, judge.filenames, network.scores, judge.tags)
    truth = pd.DataFrame(judge.truth["coarse"].astype(int), columns=list(judge.taxonomy.coarse_tags))
    truth.insert(0, CLIP, judge.filenames)
    with atomic(model.truth) as temporary:
        truth.to_csv(temporary, index=False, lineterminator="\n")
    student = metrics.students[name]
    latency_ms = {
        file: runtime.network if file in NETS else runtime.audio_to_tags
        for runtime, files in ((times.float32, (NETS[0], WHOLE[0])), (times.int8, (NETS[1], WHOLE[1])))
        for file in files
    }
    Measurements(
        split=judge.split,
        digest=sha256(model.truth),
        coarse=student.coarse,
        parameters=student.parameters,
        macs=student.macs,
        bytes=_sizes(model),
        latency_ms=latency_ms,
        parity=dict(parity),
        tags=judge.tags,
        features=judge.features.config,
    ).write(model.measurements_file)


def _sizes(model: ModelFolder) -> dict[str, int]:
    """Return the size of each ONNX file."""
    return {file: (model.device / file).stat().st_size for file in (*NETS, *WHOLE)}
