"""SONYC-UST v2.3 in small, as it is published, with the defaults: from Zenodo to where a student is weak."""

import json
from typing import Any

import pandas as pd
import pytest

from iusp.artifacts.dataset import INDEX
from iusp.data.clips import NO_TRUTH
from iusp.data.labels import PLACE_AND_TIME, SPLITS
from iusp.evaluation.slices import SLICED, weakest
from iusp.sources import sonyc_ust
from tests.support import zenodo
from tests.support.datasets import COLUMNS, reasons, row
from tests.support.project import STUDENTS, Project
from tests.support.sonyc_ust import nineteen, pin, publish, wav

pytestmark = pytest.mark.slow

TRAIN, VALIDATE, TEST, AGREED = 36, 30, 69, 12  # AGREED of validate have a row of annotator 0
HEARD = [[f"{category}-1"] for category in (1, 3, 4, 5, 6, 7, 8)] + [["1-1", "7-1"]]
DOG = "8_dog"
BOTH = "00_000000.wav"  # of train: volunteers heard a dog there, and the agreed truth is a signal


def where(number: int, sensor: str) -> dict[str, str]:
    """Place and time of a clip; of some, the hour or the borough is unknown."""
    hour, borough = ("7", "8", "22")[number % 3], ("1", "3")[number // 3 % 2]
    known = ("" if number < 2 else borough, "546", "40.72951", "-73.99388", "2017", "9", "3")
    return {"sensor_id": sensor} | dict(zip(PLACE_AND_TIME, (*known, "" if number < 3 else hour), strict=True))


def member(name: str, split: str) -> dict[str, Any]:
    """The row of one of SONYC's members, who looked for dogs alone, and heard one."""
    return row(name, split, -3, heard=["8"]) | {name: -1 for name in COLUMNS if not name.startswith("8")}


def rows() -> list[dict[str, Any]]:
    """Train and test share three sensors, validate has two of its own; volunteers labelled the clips of all splits."""
    made = []
    for split, clips, sensors, first in (("train", TRAIN, 3, 0), ("validate", VALIDATE, 2, 50), ("test", TEST, 3, 0)):
        for number in range(clips):
            sensor = str(first + number * sensors // clips)
            name = f"{int(sensor):02}_{1000 * SPLITS.index(split) + number:06}.wav"
            heard = HEARD[number % len(HEARD)]
            by_volunteers = heard if split == "train" else ["8-1"]
            own = [row(name, split, 7 + volunteer, heard=by_volunteers if volunteer else ()) for volunteer in range(3)]
            if split == "test" or (split == "validate" and number < AGREED):
                own.append(row(name, split, 0, heard=heard))
                own += [member(name, split)] if number < 3 else []
            elif number > clips - 3:
                own.append(member(name, split))
            made += [one | where(number, sensor) for one in own]
    own = [row(BOTH, "train", 0, heard=["5-1"]), row(BOTH, "train", 9, heard=["8-1"])]
    return [one for one in made if one["audio_filename"] != BOTH] + [one | where(5, "0") for one in own]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """What a user has who chose source and version, with the defaults of params.yaml for the data."""
    table = rows()
    clips = {
        name: wav(seed, 1 + seed % 3) for seed, name in enumerate(dict.fromkeys(one["audio_filename"] for one in table))
    }
    published = publish(tmp_path_factory.mktemp("zenodo") / "files", nineteen(clips), table)
    project = Project(tmp_path_factory.mktemp("v23") / "project")
    params = project.params()
    params["dataset"]["source"] = "sonyc-ust"
    params["dataset"]["sonyc_ust"]["version"] = "v2.3"
    params["teacher"]["tags"] = "coarse"
    params["students"] = {"small": STUDENTS["small"] | {"seeds": [0]}}
    project.write_params(params)
    pin(project, table)
    with zenodo.serving(published, "v2.3") as server:
        module = project.folder / "iusp/sources/sonyc_ust.py"
        module.write_text(module.read_text().replace(sonyc_ust.ZENODO, f"{server.address}/api/records"))
        said = project.run("iusp", "dataset").stdout
        assert f"without truth: 50_001012.wav, 50_001013.wav, 50_001014.wav and {VALIDATE - AGREED - 3} more\n" in said
        assert {name for name, _ in server.requests} == {
            "record.json",
            "annotations.csv",
            "dcase-ust-taxonomy.yaml",
        } | {f"audio-{number}.tar.gz" for number in range(19)}
    for step in (("features",), ("teacher",), ("student", "small"), ("evaluation",)):
        project.run("iusp", *step)
    return project


@pytest.fixture(scope="module")
def summary(project: Project) -> dict[str, Any]:
    return json.loads((project.folder / "data/dataset/dataset.json").read_text())


@pytest.fixture(scope="module")
def labels(project: Project) -> pd.DataFrame:
    return pd.read_parquet(project.folder / "data/dataset/labels.parquet").set_index("audio_filename")


def test_clips_of_validate_that_only_volunteers_labelled_are_left_out(project: Project, summary: dict) -> None:
    assert summary["clips"] == {"train": TRAIN, "validate": AGREED, "test": TEST}
    assert summary["without_truth"]["count"] == VALIDATE - AGREED
    left_out = reasons(project.folder / "data/dataset/unmatched.csv")
    assert len(left_out) == VALIDATE - AGREED > 0.02 * (TRAIN + VALIDATE + TEST)
    assert set(left_out.values()) == {NO_TRUTH}
    assert all(name.startswith(("50_", "51_")) for name in left_out)
    assert summary["quarantined"]["count"] == summary["missing"]["count"] == summary["duplicate_rows"]["count"] == 0


def test_sensors_of_train_and_test_are_reported(summary: dict) -> None:
    assert summary["shared_sensors"] == {"count": 3, "names": ["0", "1", "2"]}


def test_volunteers_label_train_and_agreement_the_rest(labels: pd.DataFrame) -> None:
    assert labels.loc[BOTH, ["5_alert-signal", DOG]].tolist() == [0, 1]
    # Of other splits, volunteers and members say that all clips are of dogs.
    test = labels[labels["split"] == "test"]
    truth = [float("8-1" in HEARD[number % len(HEARD)]) for number in range(TEST)]
    assert test[DOG].tolist() == truth
    train = labels[labels["split"] == "train"].drop(BOTH)
    assert train[DOG].sum() == sum("8-1" in HEARD[number % len(HEARD)] for number in range(1, TRAIN))


def test_the_index_knows_where_and_when(project: Project) -> None:
    index = pd.read_parquet(project.folder / "data/dataset/index.parquet")
    assert list(index.columns) == [*INDEX, *PLACE_AND_TIME]
    assert set(index["seconds"]) == {1, 2, 3}
    last = index[index["split"] == "test"].iloc[-1]
    assert last[["sensor_id", *PLACE_AND_TIME]].to_dict() == where(TEST - 1, "2")


def test_slices_add_up_and_the_report_shows_where_the_student_is_weak(project: Project) -> None:
    index = pd.read_parquet(project.folder / "data/dataset/index.parquet")
    known = {name: int((index.loc[index["split"] == "test", name] != "").sum()) for name in SLICED}
    assert known == {"hour": TEST - 3, "borough": TEST - 2, "sensor_id": TEST}
    evaluation = project.folder / "reports/evaluation"
    slices = pd.read_csv(evaluation / "slices.csv", dtype={"group": str})
    for network in ("teacher", "small"):
        own = slices[slices["network"] == network]
        assert own.groupby("by")["clips"].sum().to_dict() == known
        assert own.groupby("by")["group"].agg(list).to_dict() == {
            "hour": ["7", "8", "22"],
            "borough": ["1", "3"],
            "sensor_id": ["0", "1", "2"],
        }
    assert slices["micro_auprc"].notna().all()
    report = (evaluation / "report.html").read_text().partition("Where and when small is weak")[2]
    shown = [f"{one['by'].replace('sensor_id', 'sensor')} {one['group']}" for one in weakest(slices, "small", 12)]
    assert len(shown) == 8
    places = [report.index(f">{group}</td>") for group in shown]
    assert places == sorted(places)
