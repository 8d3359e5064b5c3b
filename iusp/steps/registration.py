"""Step 6: what was computed goes to MLflow, and every student becomes a version of one registered model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iusp.artifacts.records import TrainingRecord
from iusp.artifacts.untyped import Digested, best_student, read_metrics
from iusp.config.params import Settings
from iusp.errors import InputError
from iusp.io.files import read_json, write_json
from iusp.registry.promotion import promote_challenger
from iusp.registry.tracking import Tracker, readable_errors
from iusp.registry.versions import EVALUATION, Registry, register, set_challenger


def run(config: Settings, tracker: Tracker, dataset: Path, evaluation: Path, output: Path) -> dict[str, Any]:
    """Complete the MLflow runs of this execution, register the students, and write `output` (JSON).

    A run that exists already, because its step logged while it trained, is completed; nothing is logged or registered
    twice. The alias `challenger` goes to the student that is best by micro-averaged AUPRC on validate. If
    `registration.auto_promote` says so and the gate lets it, it becomes the champion, too; a refusal is no failure.

    Args:
        config: the whole of params.yaml; every step's run says which part of it was its own.
        tracker: the execution's runs.
        dataset: folder that the dataset step wrote.
        evaluation: folder that the evaluation step wrote.
        output: file to write.

    Returns:
        What the file says: registered model, version by student, challenger, the parent's run id; and, with
        `auto_promote`, whether the challenger is the champion, with the gate's reasons if not.

    Raises:
        InputError: MLflow cannot be reached, or refuses.
    """
    metrics = read_metrics(evaluation)
    if not set(metrics["students"]) <= set(config.students):
        raise InputError(f"{evaluation}: is of other students than those of params.yaml; run the evaluation step again")
    networks = evaluation / "networks"
    with readable_errors():
        lineage = {
            "iusp.source": config.dataset.source_name,
            "iusp.data": read_json(dataset / "dataset.json", form=Digested)["digest"],
            "iusp.features": read_json(evaluation / "features.json", form=Digested)["digest"],
            "iusp.teacher": metrics["teacher"]["sha256"],
        }
        tracker.parent.tags(lineage)
        with tracker.step("dataset") as run:
            run.params(config.dataset.model_dump(mode="json", by_alias=True))
            run.artifacts([dataset / name for name in ("dataset.json", "quarantine.csv", "unmatched.csv")])
        with tracker.step("features") as run:
            run.params(config.features.model_dump(mode="json"))
            run.artifacts([evaluation / "features.json"])
        settings = config.teacher.model_dump(mode="json")
        _network(tracker, "teacher", settings, networks / "teacher", metrics["teacher"])
        versions = {
            name: _student(tracker, config, name, networks, numbers, metrics["split"], lineage)
            for name, numbers in metrics["students"].items()
        }
        with tracker.step("evaluation") as run:
            run.params(config.evaluation.model_dump(mode="json"))
            for network, numbers in {"teacher": metrics["teacher"], **metrics["students"]}.items():
                run.metrics({f"{network}.{name}": value for name, value in _numbers(numbers).items()})
            run.artifacts([evaluation / name for name in ("metrics.json", "latency.json", "report.html", "plots")])
        best = best_student(metrics["students"])
        set_challenger(tracker.client, config.registration.model_name, versions[best])
        with tracker.step("registration") as run:
            run.params(config.registration.model_dump(mode="json") | {"challenger": best})
        result = {
            "model_name": config.registration.model_name,
            "versions": versions,
            "challenger": best,
            "run_id": tracker.parent.run_id,
        }
        if config.registration.auto_promote:
            registry = Registry(config.registration.model_name, tracker.client)
            outcome = promote_challenger(registry, versions[best], config.registration.gate, config.evaluation)
            result["promotion"] = {"promoted": not outcome.reasons, "reasons": list(outcome.reasons)}
    write_json(output, result)
    return result


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten the numbers of `metrics.json` to dotted names, as DVC shows them."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            flat[f"{prefix}{name}"] = value
    return flat


def _network(tracker: Tracker, name: str, params: Mapping[str, Any], folder: Path, numbers: Mapping[str, Any]) -> str:
    with tracker.step(name) as run:
        run.params(params)
        for row in TrainingRecord.read(folder).rows:
            run.row(row)
        run.metrics(_numbers(numbers))
        run.artifacts([folder / "config.json"])
        return run.run_id


def _student(
    tracker: Tracker,
    config: Settings,
    name: str,
    networks: Path,
    numbers: Mapping[str, Any],
    split: str,
    lineage: Mapping[str, str],
) -> int:
    params = (
        {"student": name} | config.students[name].model_dump(mode="json") | config.distillation.model_dump(mode="json")
    )
    params["weights"] = numbers["weights"]
    runs = {}
    for seed, auprc in numbers["seeds"].items():
        # The chosen seed's run has all numbers, the others' have what was measured of them.
        known = numbers if int(seed) == numbers["best_seed"] else {"coarse": {"micro_auprc": auprc}}
        runs[int(seed)] = _network(
            tracker, f"{name}-seed-{seed}", params | {"seed": seed}, networks / f"{name}-seed-{seed}", known
        )
    best = numbers["best_seed"]
    tags: dict[str, Any] = {
        **lineage,
        "student": name,
        "method": numbers["method"],
        "seed": best,
        "architecture": numbers["architecture"],
        "parameters": numbers["parameters"],
        "macs": numbers["macs"],
        "bytes": numbers["bytes"],
        "evaluated_on": split,
        "validate_micro_auprc": numbers["validate_micro_auprc"][str(best)],
    }
    for kind in ("micro_auprc", "macro_auprc"):
        tags |= {key: numbers["coarse"][key] for key in (kind, f"{kind}_low", f"{kind}_high")}
    model = networks / f"{name}-seed-{best}" / "model"
    measurements = model / EVALUATION / "measurements.json"
    if measurements.exists():
        measured = read_json(measurements, "bytes", "latency_ms")
        tags |= {f"bytes.{file}": size for file, size in measured["bytes"].items()}
        tags |= {f"latency_ms.{file}": latency["p50"] for file, latency in measured["latency_ms"].items()}
    return register(tracker.client, config.registration.model_name, runs[best], model, tags)
