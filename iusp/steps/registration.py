"""Step 6: send what was computed to MLflow, and register every student as a version of one model."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from iusp.artifacts.base import Digested, seed_name
from iusp.artifacts.dataset import DatasetFolder
from iusp.artifacts.evaluation import EvaluationFolder
from iusp.artifacts.metrics import Metrics, StudentResult
from iusp.artifacts.registration import Promotion, Registration
from iusp.config.params import Settings
from iusp.errors import InputError
from iusp.registry.promotion import promote_challenger
from iusp.registry.tracking import Tracker, readable_errors
from iusp.registry.versions import Registry, register, set_challenger, source_tags
from iusp.reporter import Reporter

Tags = dict[str, str | float]
Params = dict[str, object]


@dataclass(frozen=True)
class Execution:
    """One execution of the pipeline, and the results that are logged and registered.

    Attributes:
        config: all of params.yaml that shapes a result.
        tracker: the execution's MLflow runs.
        folder: folder that the evaluation step wrote.
        metrics: content of its `metrics.json`.
        lineage: tags that say which data, features and teacher a version comes from.
        reporter: receives warnings about registered versions.
    """

    config: Settings
    tracker: Tracker
    folder: EvaluationFolder
    metrics: Metrics
    lineage: Tags
    reporter: Reporter


def run(
    config: Settings, tracker: Tracker, dataset: Path, evaluation: Path, output: Path, reporter: Reporter
) -> Registration:
    """Complete the MLflow runs of this execution, register the students, and write `output` (JSON).

    A run that exists already, because its step logged while it trained, is completed. Nothing is logged or registered
    twice. The alias `challenger` goes to the student that is best on validate by micro-averaged AUPRC. With
    `registration.auto_promote`, the challenger becomes the champion if it passes the gate; a refusal is not a failure.

    Args:
        config: all of params.yaml; each step's run gets the section of that step.
        tracker: the execution's MLflow runs.
        dataset: folder that the dataset step wrote.
        evaluation: folder that the evaluation step wrote.
        output: file to write.
        reporter: receives warnings about registered versions.

    Returns:
        The content of the file.

    Raises:
        InputError: MLflow cannot be reached, or refuses.
    """
    folder, data = EvaluationFolder(evaluation), DatasetFolder(dataset)
    metrics = folder.metrics
    if not set(metrics.students) <= set(config.students):
        raise InputError(f"{evaluation}: has students that params.yaml does not name; run the evaluation step again")
    with readable_errors():
        lineage: Tags = {
            **source_tags(metrics.data),
            "iusp.data": data.digest,
            "iusp.features": Digested.read(folder.features_file).digest,
            "iusp.teacher": metrics.teacher.sha256,
        }
        tracker.parent.tags(lineage)
        execution = Execution(config, tracker, folder, metrics, lineage, reporter)
        _log_data(execution, data)
        _log_network(execution, "teacher", _settings(config.teacher), metrics.teacher.numbers)
        versions = {name: _register_student(execution, name, student) for name, student in metrics.students.items()}
        _log_evaluation(execution)
        result = _set_challenger(execution, versions)
    result.write(output)
    return result


def _settings(section: BaseModel) -> Params:
    return section.model_dump(mode="json", by_alias=True)


def _log_data(execution: Execution, data: DatasetFolder) -> None:
    """Complete the runs of the steps that prepare the data."""
    with execution.tracker.step("dataset") as run:
        run.params(_settings(execution.config.dataset))
        run.artifacts([data.summary_file, data.quarantine, data.unmatched])
    with execution.tracker.step("features") as run:
        run.params(_settings(execution.config.features))
        run.artifacts([execution.folder.features_file])


def _log_network(execution: Execution, name: str, params: Params, numbers: dict[str, float]) -> str:
    """Complete the run of one network and return its id."""
    with execution.tracker.step(name) as run:
        run.params(params)
        for row in execution.folder.record(name).rows:
            run.row(row)
        run.metrics(numbers)
        run.artifacts([execution.folder.network(name) / "config.json"])
        return run.run_id


def _log_evaluation(execution: Execution) -> None:
    """Complete the run of the evaluation step; its metrics have the names that `dvc metrics show` gives them."""
    folder = execution.folder
    with execution.tracker.step("evaluation") as run:
        run.params(_settings(execution.config.evaluation))
        run.metrics(execution.metrics.numbers)
        run.artifacts([folder.metrics_file, folder.latencies_file, folder.report, folder.plots])


def _register_student(execution: Execution, name: str, student: StudentResult) -> int:
    """Complete the runs of all seeds of a student, register the best one, and return its version."""
    config = execution.config
    params = {"student": name} | _settings(config.students[name]) | _settings(config.distillation)
    params["weights"] = student.weights
    runs = {}
    for seed, auprc in student.seeds.items():
        # Only the best seed was measured in full.
        numbers = student.numbers if int(seed) == student.best_seed else {"coarse.micro_auprc": auprc}
        runs[int(seed)] = _log_network(execution, seed_name(name, int(seed)), params | {"seed": int(seed)}, numbers)
    model = execution.folder.model(seed_name(name, student.best_seed))
    tags = _version_tags(execution, name, student)
    if model.measurements_file.exists():
        measured = model.measurements
        tags |= {f"bytes.{file}": size for file, size in measured.bytes.items()}
        tags |= {f"latency_ms.{file}": latency.p50 for file, latency in measured.latency_ms.items()}
    client, model_name = execution.tracker.client, config.registration.model_name
    return register(client, model_name, runs[student.best_seed], model.path, tags, execution.reporter)


def _version_tags(execution: Execution, name: str, student: StudentResult) -> Tags:
    coarse = student.coarse
    return execution.lineage | {
        "student": name,
        "method": student.method,
        "seed": student.best_seed,
        "architecture": student.architecture,
        "parameters": student.parameters,
        "macs": student.macs,
        "bytes": student.bytes,
        "evaluated_on": execution.metrics.split,
        "validate_micro_auprc": student.best_validate_auprc,
        "micro_auprc": coarse.micro_auprc,
        "micro_auprc_low": coarse.micro_auprc_low,
        "micro_auprc_high": coarse.micro_auprc_high,
        "macro_auprc": coarse.macro_auprc,
        "macro_auprc_low": coarse.macro_auprc_low,
        "macro_auprc_high": coarse.macro_auprc_high,
    }


def _set_challenger(execution: Execution, versions: dict[str, int]) -> Registration:
    """Move the alias `challenger`, and promote the challenger if the settings say so."""
    tracker, settings, best = execution.tracker, execution.config.registration, execution.metrics.best_student
    set_challenger(tracker.client, settings.model_name, versions[best])
    with tracker.step("registration") as run:
        run.params(_settings(settings) | {"challenger": best})
    promotion = None
    if settings.auto_promote:
        registry = Registry(settings.model_name, tracker.client)
        outcome = promote_challenger(registry, versions[best], settings.gate, execution.config.evaluation)
        promotion = Promotion(promoted=not outcome.reasons, reasons=list(outcome.reasons))
    return Registration(
        model_name=settings.model_name,
        versions=versions,
        challenger=best,
        run_id=tracker.parent.run_id,
        promotion=promotion,
    )
