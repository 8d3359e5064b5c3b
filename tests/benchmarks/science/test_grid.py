import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.science.grid import (
    CORE,
    SEARCH,
    SEEDS,
    SIZES,
    Choice,
    Record,
    Run,
    mains,
    regimes,
    searched,
    searches,
    usual,
    variants,
    whole_grid,
)
from iusp.config.params import load

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
NUMBERS = {
    "architecture": "plain",
    "parameters": 5568,
    "kept_epoch": 3,
    "micro_auprc": 0.5,
    "macro_auprc": 0.5,
    "cpu_seconds": 1.5,
}


def first_weight(run: Run) -> float:
    weights = json.loads(run.weights)
    return weights[run.method.split("+")[0]] if weights else run.learning_rate


def finish(record: Record, runs, score=lambda run: 0.5) -> list[Run]:
    runs = list(runs)
    for run in runs:
        record.add(dataclasses.asdict(run) | NUMBERS | {"validate_micro_auprc": score(run)})
    return runs


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "science.csv")


@pytest.fixture
def searched_record(record: Record) -> Record:
    """A search in which the middle value is the best of each method."""
    finish(record, searches(record, "embedded", ["labels"]), lambda run: -abs(run.learning_rate - 0.01))
    for method in [method for method in SEARCH if method != "labels"]:
        middle = SEARCH[method][1]
        finish(
            record, searches(record, "embedded", [method]), lambda run, middle=middle: -abs(first_weight(run) - middle)
        )
    return record


def test_a_record_outlives_the_process(record: Record) -> None:
    runs = finish(record, searches(record, "embedded", ["labels"]))
    again = Record(record.path)
    assert again.rows == record.rows
    assert all(again.has(run) for run in runs)
    assert not any(again.has(dataclasses.replace(run, seed=7)) for run in runs)


def test_every_search_has_the_same_budget_and_goes_beyond_an_edge_twice(record: Record) -> None:
    finish(record, searches(record, "embedded", ["labels"]), lambda run: -abs(run.learning_rate - 0.01))
    values = []
    for _ in range(4):
        # The greater the weight, the better.
        values.append([first_weight(run) for run in finish(record, searches(record, "embedded", ["kd"]), first_weight)])
    assert values[:3] == [[3, 10, 30], [90], [300]]
    waves = whole_grid(record)
    assert len({len(values) for values in SEARCH.values()}) == 1
    assert sum("searches" in wave.__code__.co_names for wave in waves) == 9
    assert list(searches(record, "recordings", ["kd"])) == []


def test_an_inner_best_ends_the_search(searched_record: Record) -> None:
    assert not list(searches(searched_record, "embedded", SEARCH))
    chosen = searched(searched_record)
    assert chosen("labels") == Choice({}, 0.01)
    assert chosen("iusp+kd").weights == {"iusp": 30, "kd": 10}


def test_methods_are_compared_on_the_same_seeds_and_nothing_is_made_twice(searched_record: Record) -> None:
    chosen = searched(searched_record)
    runs = [
        *mains(chosen, "embedded", CORE, range(10)),
        *mains(chosen, "embedded", [method for method in SEARCH if method not in CORE], SEEDS),
        *regimes(chosen, "embedded", SEEDS),
        *variants(chosen, "embedded", SEEDS),
    ]
    assert len(set(runs)) == len(runs)
    seeds: dict = {}
    for run in runs:
        setting = (run.student, run.augmentation, run.epochs, run.batch_size, run.method, run.variant)
        seeds.setdefault(setting, []).append(run.seed)
    assert all(sorted(own) in (list(range(5)), list(range(10))) for own in seeds.values())
    assert {run.student for run in runs if run.stage == "main"} == set(SIZES)
    assert {run.learning_rate for run in runs} == {0.01}
    # Weights do not depend on the size, the regime or the seed.
    for method in SEARCH:
        assert len({run.weights for run in runs if run.method == method}) == 1


def test_a_quick_study_takes_the_weights_of_the_pipeline() -> None:
    chosen = usual(load(ROOT / "params.yaml"))
    assert chosen("labels").weights == {}
    weights = load(ROOT / "params.yaml").distillation.weights
    assert chosen("iusp+kd").weights == {"iusp": weights.iusp, "kd": weights.kd}
