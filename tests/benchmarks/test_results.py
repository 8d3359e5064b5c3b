import json
from pathlib import Path
from typing import Any

from benchmarks.results import readme_table
from iusp.artifacts.evaluation import EvaluationFolder


def network(auprc: float, **more: Any) -> dict[str, Any]:
    scores = {f"{kind}{end}": auprc for kind in ("micro_auprc", "macro_auprc") for end in ("", "_low", "_high")}
    coarse = scores | {"micro_f1": 0.5, "classwise": {"1": auprc}}
    return {"architecture": "plain", "parameters": 5568, "macs": 10, "bytes": 10, "coarse": coarse} | more


def student(method: str, auprc: float) -> dict[str, Any]:
    seeds = {"validate_micro_auprc": {"0": auprc}, "seeds": {"0": auprc}, "seeds_mean": auprc, "seeds_std": 0.0}
    return network(auprc, method=method, weights={}, best_seed=0, **seeds)


def test_the_readme_has_a_narrow_table_with_the_best_student_first(tmp_path: Path) -> None:
    data = {"name": "a folder", "digest": "", "clips": {"test": 300}}
    students = {"small": student("iusp", 0.7), "small_kd": student("kd", 0.72)}
    metrics = {
        "data": data,
        "split": "test",
        "clips": 300,
        "absent_tags": [],
        "teacher": network(0.8, sha256=""),
        "students": students,
    }
    times = {part: {"p50": 1.25, "p95": 2.0} for part in ("network", "audio_to_tags")}
    latencies = {name: dict.fromkeys(("torch", "float32", "int8"), times) for name in ("teacher", *students)}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "latency.json").write_text(json.dumps(latencies))
    text = readme_table(EvaluationFolder(tmp_path))
    head, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert len(head) == 5
    assert [row[0] for row in rows] == ["teacher", "small_kd", "small"]
    assert rows[1] == ["small_kd", "kd", "5,568", "1.25", "0.720 [0.720, 0.720]"]
    assert "300 test clips (a folder)" in text
