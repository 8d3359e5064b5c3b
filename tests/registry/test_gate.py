"""The gate says every reason against a version, and compares it with the champion clip by clip."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from iusp.config.registration import Gate
from iusp.errors import InputError
from iusp.evaluation.metrics import score
from iusp.registry.gate import Evidence, compare, judge, read_evidence
from tests.support.evidence import EVALUATION, GATE, TAXONOMY, write_evidence


def evidence(folder: Path, version: int = 2, **made: Any) -> Evidence:
    write_evidence(folder, **made)
    return read_evidence(folder, version)


def gate(**changes: Any) -> Gate:
    sections = GATE.model_dump()
    return Gate.model_validate({name: section | changes.get(name, {}) for name, section in sections.items()})


def test_a_good_version_passes_and_the_first_champion_is_compared_with_nothing(tmp_path: Path) -> None:
    verdict = judge(evidence(tmp_path), None, GATE, EVALUATION)
    assert verdict.reasons == []
    assert verdict.comparison is None


def test_every_reason_is_given_at_once(tmp_path: Path) -> None:
    floors = {"micro_auprc": 0.99, "macro_auprc": 0.98, "classes": {"1_engine": 0.97, "9_bells": 0.1}}
    budgets = {"parameters": 5567, "macs": 1_599_999, "bytes": {"int8.onnx": 19_999, "net_int8.onnx": 1}}
    budgets["latency_ms"] = {"int8.onnx": 1.1}
    changes = {
        "parity": {
            "float32.onnx": {"max_difference": 2e-4},
            "int8.onnx": {"max_difference": 0.1, "auprc_loss": 0.006},
            "net_int8.onnx": {"auprc_loss": None},
        }
    }
    reasons = judge(evidence(tmp_path, changes=changes), None, gate(floors=floors, budgets=budgets), EVALUATION).reasons
    expected = [
        "micro AUPRC 0.",
        "macro AUPRC 0.",
        "AUPRC of 1_engine 0.",
        "AUPRC of 9_bells was not measured",
        "parameters: 5,568 is more than the budget of 5,567",
        "MACs: 1,600,000 is more than the budget of 1,599,999",
        "bytes of int8.onnx: 20,000 is more than the budget of 19,999",
        "bytes of net_int8.onnx: not measured, but registration.gate.budgets sets a budget",
        "median ms of int8.onnx: 1.2 is more than the budget of 1.1",
        "float32.onnx: its probabilities differ from the network's by up to 0.0002, more than 0.0001",
        "net_int8.onnx: its difference from the network was not measured",
        "int8.onnx: loses 0.0060 micro AUPRC, more than 0.005",
    ]
    assert len(reasons) == len(expected), reasons
    for reason, words in zip(reasons, expected, strict=True):
        assert reason.startswith(words)


def test_what_meets_its_threshold_passes(tmp_path: Path) -> None:
    one = evidence(tmp_path)
    coarse = one.measurements.coarse
    floors = {"micro_auprc": coarse.micro_auprc, "macro_auprc": coarse.macro_auprc}
    budgets = {"parameters": 5568, "macs": 1_600_000, "bytes": {"int8.onnx": 20_000}, "latency_ms": {"int8.onnx": 1.2}}
    assert judge(one, None, gate(floors=floors, budgets=budgets), EVALUATION).reasons == []


def test_the_comparison_is_that_of_a_naive_twin(tmp_path: Path) -> None:
    new, old = evidence(tmp_path / "new", noise=0.3), evidence(tmp_path / "old", 1, noise=0.33, seed=2)
    generator = np.random.default_rng(EVALUATION.seed)
    truth = new.truth.to_numpy() > 0
    differences = []
    for _ in range(EVALUATION.resamples):
        drawn = generator.integers(len(truth), size=len(truth))
        both = [score(truth[drawn], one.scores.to_numpy()[drawn], TAXONOMY, "coarse") for one in (new, old)]
        differences.append(both[0].micro_auprc - both[1].micro_auprc)
    result = compare(new, old, EVALUATION)
    assert result.champion == 1
    assert result.clips == 80
    stated = new.measurements.coarse.micro_auprc - old.measurements.coarse.micro_auprc
    assert result.difference == pytest.approx(stated, abs=1e-12)
    assert [result.low, result.high] == pytest.approx(np.percentile(differences, [2.5, 97.5]), abs=1e-12)
    assert result.probability_worse == np.mean(np.array(differences) < 0)
    assert 0 < result.probability_worse < 1


def test_a_worse_one_is_refused_a_better_one_passes_and_an_equal_one_too(tmp_path: Path) -> None:
    good, bad = evidence(tmp_path / "good", noise=0.3), evidence(tmp_path / "bad", 1, noise=0.5)
    verdict = judge(bad, good, gate(floors={"micro_auprc": 0, "macro_auprc": 0}), EVALUATION)
    assert len(verdict.reasons) == 2
    assert "the probability of being worse than version 2, the champion, is 1.000" in verdict.reasons[0]
    assert verdict.comparison
    assert f"by {-verdict.comparison.low:.4f} micro AUPRC, more than 0.03" in verdict.reasons[1]
    for champion in (bad, good):
        assert judge(good, champion, GATE, EVALUATION).reasons == []


def test_the_order_of_clips_does_not_count(tmp_path: Path) -> None:
    new, old = evidence(tmp_path / "new"), evidence(tmp_path / "old", noise=0.4)
    for name in ("predictions.csv", "truth.csv"):
        lines = (tmp_path / "old" / name).read_text().splitlines()
        (tmp_path / "old" / name).write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    assert compare(new, read_evidence(tmp_path / "old", 2), EVALUATION) == compare(new, old, EVALUATION)


def test_other_clips_and_another_truth_cannot_be_compared(tmp_path: Path) -> None:
    new, fewer = evidence(tmp_path / "new"), evidence(tmp_path / "fewer", 1, clips=70)
    verdict = judge(new, fewer, GATE, EVALUATION)
    assert verdict.comparison is None
    assert verdict.reasons == [
        "cannot be compared with version 1, the champion: it was evaluated on other clips (80 against 70, 70 in common)"
        "; evaluate both on the same clips"
    ]
    truth = pd.read_csv(tmp_path / "new/truth.csv", index_col=0)
    truth.iloc[3, 0] = 1 - truth.iloc[3, 0]
    other = Evidence(1, new.measurements, new.taxonomy, truth, new.scores)
    assert judge(new, other, GATE, EVALUATION).reasons == [
        "cannot be compared with version 1, the champion: the ground truth differs for 1 of 80 clips; evaluate both on "
        "the same data"
    ]


def test_other_tags_or_another_front_end_are_refused(tmp_path: Path) -> None:
    old = evidence(tmp_path / "old", 1)
    new = evidence(tmp_path / "new", changes={"features": {"mel_bands": 32, "hop_length": 320}})
    assert judge(new, old, GATE, EVALUATION).reasons == [
        "its front-end differs from that of version 1, the champion: hop_length, mel_bands"
    ]
    write_evidence(tmp_path / "fine")
    path = tmp_path / "fine/measurements.json"
    measured = json.loads(path.read_text())
    tags = ["1-1_small-sounding-engine", *measured["tags"]]
    path.write_text(json.dumps(measured | {"tags": tags}))
    assert judge(read_evidence(tmp_path / "fine", 2), old, GATE, EVALUATION).reasons == [
        "its tags differ from those of version 1, the champion"
    ]


def test_a_coarse_tag_that_the_network_lacks_is_the_maximum_of_its_fine_ones(tmp_path: Path) -> None:
    write_evidence(tmp_path)
    path = tmp_path / "measurements.json"
    measured = json.loads(path.read_text())
    fine = ["1-1_small-sounding-engine", "1-2_medium-sounding-engine"]
    path.write_text(json.dumps(measured | {"tags": [*fine, *measured["tags"][1:]]}))
    table = pd.read_csv(tmp_path / "predictions.csv", index_col=0)
    engine = table.pop("1_engine")
    table.insert(0, fine[0], engine.where(np.arange(len(engine)) % 2 == 0, 0))
    table.insert(0, fine[1], engine.where(np.arange(len(engine)) % 2 == 1, 0))
    table.to_csv(tmp_path / "predictions.csv")
    assert read_evidence(tmp_path, 1).scores["1_engine"].to_numpy() == pytest.approx(engine.to_numpy())


@pytest.mark.parametrize("name", ["measurements.json", "predictions.csv", "truth.csv"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "binary"])
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str, damage: str) -> None:
    write_evidence(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "binary": b"\xff\xfe\x00\x01"}[damage])
    with pytest.raises(InputError) as error:
        read_evidence(tmp_path, 1)
    assert len(str(error.value).splitlines()) == 1
    assert name in str(error.value) or "truth.csv" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"coarse": {"micro_auprc": 0.99}}, "where measurements.json says 0.9900"),
        ({"coarse": {"micro_auprc": float("nan")}}, "coarse.micro_auprc"),
        ({"parameters": "5568"}, "parameters: Input should be a valid integer"),
        ({"macs": -1}, "macs"),
        ({"latency_ms": {"int8.onnx": {"p50": float("inf")}}}, "latency_ms.int8.onnx.p50"),
        ({"tags": []}, "tags"),
        ({"tags": ["1_engine", "0-1_unheard-of"]}, "its tags differ from those of measurements.json"),
    ],
)
def test_measurements_that_cannot_be_are_one_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    write_evidence(tmp_path, changes=changes)
    with pytest.raises(InputError, match=r"again$") as error:
        read_evidence(tmp_path, 1)
    assert words in str(error.value)


def test_truth_that_is_no_truth_is_one_line(tmp_path: Path) -> None:
    write_evidence(tmp_path)
    path = tmp_path / "truth.csv"
    path.write_text(path.read_text().replace(",1\n", ",0.5\n", 1))
    with pytest.raises(InputError, match="must hold only 0 and 1"):
        read_evidence(tmp_path, 1)
