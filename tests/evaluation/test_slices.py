"""Scores by place and time, against a naive twin; and the report's table of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import iusp
from iusp.artifacts.evaluation import EvaluationFolder
from iusp.artifacts.metrics import Data, Metrics, NetworkTimes, Percentiles, TeacherResult, Times
from iusp.data.taxonomy import read_taxonomy
from iusp.evaluation.metrics import bootstrap, interval, score
from iusp.evaluation.report import write_report
from iusp.evaluation.slices import COLUMNS, MIN_CLIPS, MIN_POSITIVES, slice_scores, weakest
from tests.support.results import network_result, student_result

TAXONOMY = read_taxonomy(Path(iusp.__file__).parent / "data/taxonomy.yaml")
CLIPS = 120


@pytest.fixture(scope="module")
def data() -> tuple[pd.DataFrame, np.ndarray, dict[str, np.ndarray]]:
    """Clips of two boroughs, the second of which the student cannot tell; hours of uneven size; one unknown sensor."""
    random = np.random.default_rng(0)
    truth = random.random((CLIPS, 8)) < 0.3
    borough = np.repeat(["1", "3"], CLIPS // 2)
    good = np.clip(truth * 0.5 + random.random((CLIPS, 8)) * 0.5, 0, 1)
    student = np.where((borough == "1")[:, None], good, random.random((CLIPS, 8)))
    circumstances = pd.DataFrame(
        {
            "sensor_id": ["7"] * (CLIPS - 1) + [""],
            "borough": borough,
            "hour": ["9"] * 50 + ["10"] * (CLIPS - 50 - MIN_CLIPS + 1) + ["11"] * (MIN_CLIPS - 1),
        }
    )
    return circumstances, truth, {"teacher": good, "small": student}


def test_each_group_is_scored_by_its_own_clips(data: tuple) -> None:
    circumstances, truth, scores = data
    slices = slice_scores(circumstances, truth, scores, "small", TAXONOMY, 50, 3)
    assert list(slices.columns) == COLUMNS
    # One sensor is no comparison. Hours are in order.
    groups = list(dict.fromkeys(zip(slices["by"], slices["group"], strict=True)))
    assert groups == [("hour", "9"), ("hour", "10"), ("hour", "11"), ("borough", "1"), ("borough", "3")]
    for row in slices.itertuples():
        rows = [number for number in range(CLIPS) if circumstances[row.by][number] == row.group]
        assert (row.clips, row.positives) == (len(rows), sum(int(truth[number].sum()) for number in rows))
        assert row.positive_share == pytest.approx(row.positives / (8 * len(rows)))
        if row.group == "11":
            assert np.isnan([row.micro_auprc, row.low, row.high]).all()
            continue
        assert row.micro_auprc == score(truth[rows], scores[row.network][rows], TAXONOMY, "coarse").micro_auprc
        samples = bootstrap(truth[rows], scores[row.network][rows], TAXONOMY, "coarse", 50, 3).micro_auprc
        ends = interval(samples) if row.network == "small" else (np.nan, np.nan)
        np.testing.assert_array_equal((row.low, row.high), ends)


def test_the_weakest_group_comes_first_and_small_ones_do_not_come(data: tuple) -> None:
    slices = slice_scores(*data, "small", TAXONOMY, 50, 3)
    found = weakest(slices, "small", 3)
    assert (found[0]["by"], found[0]["group"]) == ("borough", "3")
    assert len(found) == 3
    assert "11" not in {row["group"] for row in weakest(slices, "small", 99)}
    assert {row["network"] for row in found} == {"small"}


def test_few_positives_are_too_few_however_many_clips(data: tuple) -> None:
    circumstances, truth, scores = data
    rare = truth & (np.cumsum(truth).reshape(truth.shape) < 2 * MIN_POSITIVES)
    slices = slice_scores(circumstances[["borough"]], rare, scores, "small", TAXONOMY, 10, 0)
    known = slices.groupby("group")["micro_auprc"].count()
    assert known.to_dict() == {"1": 2, "3": 0}


def test_without_places_there_are_no_slices(data: tuple) -> None:
    _, truth, scores = data
    slices = slice_scores(pd.DataFrame(index=range(CLIPS)), truth, scores, "small", TAXONOMY, 10, 0)
    assert slices.empty
    assert weakest(slices, "small", 3) == []


def test_the_report_shows_where_the_student_is_weak(data: tuple, tmp_path: Path) -> None:
    slices = slice_scores(*data, "small", TAXONOMY, 50, 3)
    network = network_result(TAXONOMY, 0.8)
    metrics = Metrics(
        data=Data(name="recordings", digest="0123", clips={"validate": CLIPS}),
        split="validate",
        clips=CLIPS,
        absent_tags=["8_dog"],
        teacher=TeacherResult(**dict(network), sha256="0123"),
        students={"small": student_result(network)},
    )
    one = Times(network=Percentiles(p50=1.0, p95=2.0), audio_to_tags=Percentiles(p50=1.0, p95=2.0))
    times = NetworkTimes(torch=one, float32=one, int8=one)
    write_report(EvaluationFolder(tmp_path), metrics, {"teacher": times, "small": times}, TAXONOMY, slices)
    report = (tmp_path / "report.html").read_text()
    assert "No validate clip has 8_dog. As in the challenge, the AUPRC of such a tag counts as 0" in report
    table = report.partition("Where and when small is weak")[2]
    assert "1 of them are too small to be scored (fewer than 20 clips or 20 positive tags)" in table
    # Whose interval lies below 0.8 is in bold, and first.
    cells = '<td class="left" data-heading="group">'
    assert f'<tr class="bold">{cells}borough 3</td><td data-heading="clips">60</td>' in table
    assert f"<tr>{cells}borough 1</td>" in table
    assert table.index("borough 3") < table.index("borough 1")
    assert "hour 11" not in table
