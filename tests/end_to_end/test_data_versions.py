"""Versions of the data as docs/data.md has them: imported once, pinned, moved, compared, on real remotes."""

import hashlib
import json
import shutil
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from tests.support import s3_servers, zenodo
from tests.support.datasets import config, ingest, row
from tests.support.files import tree
from tests.support.project import STUDENTS, Project, ran
from tests.support.s3_servers import BUCKET
from tests.support.sonyc_ust import DEV, EVAL, nineteen, pin, publish, wav

pytestmark = pytest.mark.slow

NAMES = {
    split: [f"{start + number:02}_{start + number:06}.wav" for number in range(count)]
    for split, start, count in (("train", 0, 8), ("validate", 20, 4), ("test", 40, 4))
}
CLIPS = {name: wav(number) for number, name in enumerate(name for names in NAMES.values() for name in names)}
HEARD = (["1-1"], ["8-1", "2_"], ["7-1"], ["5-1", "1-1"])
ROWS = [
    row(name, split, int(split == "train"), name[:2], heard=HEARD[number % len(HEARD)])
    for split, names in NAMES.items()
    for number, name in enumerate(names)
]
RECORDINGS = "recordings/sonyc-ust-2019"
# The other version has two of the test clips, too.
NAMES_V23 = {
    split: [f"{start + number:02}_{start + number:06}.wav" for number in range(4)]
    for split, start in (("train", 60), ("validate", 70), ("test", 42))
}
ROWS_V23 = [
    row(name, split, annotator, name[:2], heard=HEARD[number]) | {"borough": "1", "hour": str(number)}
    for split, names in NAMES_V23.items()
    for number, name in enumerate(names)
    for annotator in ((1, 2) if split == "train" else (0, 1))
]
RECORDINGS_V23 = "recordings/sonyc-ust-v2.3"
WRITTEN = ("data", "models", "reports")
TRUTH = ("--annotations", "data/dataset/annotations.csv", "--taxonomy", "data/dataset/taxonomy.yaml")


@dataclass
class Versions:
    """A project in which two versions of the data have been run through the pipeline, by git tag.

    Attributes:
        project: at the newer one.
        stores: DVC's remotes, to which both were pushed.
        digests: of the data.
        ran: stages that `dvc repro` ran.
    """

    project: Project
    stores: dict[str, "Store"]
    digests: dict[str, str] = field(default_factory=dict)
    ran: dict[str, list[str]] = field(default_factory=dict)

    def run(self, tag: str) -> None:
        """Run the pipeline on what lies in the recordings' folder, commit it and push it."""
        self.ran[tag] = ran(self.project.run("dvc", "repro").stdout)
        self.digests[tag] = digest(self.project)
        self.project.run("git", "add", ".")
        self.project.run("git", "commit", "--quiet", "--message", tag)
        self.project.run("git", "tag", tag)
        for name, store in self.stores.items():
            self.project.run("dvc", "push", "--remote", name, **store.environment)


@dataclass
class Store:
    """A DVC remote.

    Attributes:
        url: of the remote.
        environment: what DVC needs to reach it.
        put: changes an object, by its path in the remote; None deletes it.
    """

    url: str
    environment: dict[str, str]
    put: Callable[[str, bytes | None], Any]

    @classmethod
    def local(cls, folder: Path) -> "Store":
        def put(path: str, content: bytes | None) -> None:
            (folder / path).unlink()
            if content is not None:
                (folder / path).write_bytes(content)

        return cls(str(folder), {}, put)

    @classmethod
    def s3(cls, endpoint: str) -> "Store":
        def put(path: str, content: bytes | None) -> None:
            place = {"Bucket": BUCKET, "Key": f"versions/{path}"}
            if content is None:
                client.delete_object(**place)
            else:
                client.put_object(**place, Body=content)

        client = s3_servers.client(endpoint)
        return cls(f"s3://{BUCKET}/versions", s3_servers.environment(endpoint), put)


def digest(project: Project) -> str:
    return json.loads((project.folder / "data/dataset/dataset.json").read_text())["digest"]


def correct_a_label(folder: Path, clips: tuple[str, ...]) -> None:
    """Say of some clips that a dog was heard."""
    table = pd.read_csv(folder / "annotations.csv", dtype=str, keep_default_na=False)
    dogs = [column for column in table if column.startswith("8") and column.endswith("_presence")]
    table.loc[table["audio_filename"].isin(clips), dogs] = "1"
    table.to_csv(folder / "annotations.csv", index=False)


def import_and_pin(project: Project, version: int | str, mirror: Path, recordings: str) -> None:
    """Ask the publisher, for the last time; from then on DVC has it."""
    params = project.params()
    params["dataset"]["source"] = "sonyc-ust"
    params["dataset"]["sonyc_ust"] |= {"version": version, "mirror": str(mirror)}
    project.write_params(params)
    project.run("iusp", "dataset")
    shutil.rmtree(mirror)
    project.run("dvc", "add", recordings)
    params["dataset"] |= {"source": "folder", "path": recordings}
    project.write_params(params)


@pytest.fixture(scope="module")
def versions(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Versions:
    archives = {
        DEV: {f"dev/{name}": CLIPS[name] for split in ("train", "validate") for name in NAMES[split]},
        EVAL: {f"eval/{name}": CLIPS[name] for name in NAMES["test"]},
    }
    mirror = publish(tmp_path_factory.mktemp("published") / "mirror", archives, ROWS)
    (mirror / "record.json").write_bytes(zenodo.describe(mirror, 2019))
    project = Project(tmp_path_factory.mktemp("versions") / "project")
    params = project.params()
    params["students"] = {"small": STUDENTS["small"] | {"seeds": [0]}}
    for section in ("teacher", "distillation"):
        params[section]["training"] |= {"epochs": 1, "batch_size": 4}
    project.write_params(params)
    pin(project, ROWS_V23)
    project.commit()

    import_and_pin(project, 2019, mirror, RECORDINGS)
    # rclone checks signatures.
    made = Versions(
        project, {"folder": Store.local(tmp_path_factory.mktemp("store")), "bucket": Store.s3(servers["rclone"])}
    )
    for name, store in made.stores.items():
        project.run("dvc", "remote", "add", "--default", "--force", name, store.url)
        project.run("dvc", "remote", "modify", name, "verify", "true")
    made.run("data-1")
    # Move.
    project.run("dvc", "unprotect", RECORDINGS)
    correct_a_label(project.folder / RECORDINGS, (NAMES["train"][0], NAMES["test"][0]))
    project.run("dvc", "add", RECORDINGS)
    made.run("data-2")
    return made


@pytest.fixture
def colleague(versions: Versions, tmp_path: Path) -> Project:
    """A clone, and nothing else."""
    clone = tmp_path / "colleague"
    versions.project.run("git", "clone", "--quiet", ".", str(clone))
    project = copy(versions.project)
    project.folder = clone
    return project


def test_git_has_the_pointer_and_not_the_recordings(versions: Versions) -> None:
    tracked = versions.project.run("git", "ls-files", "recordings").stdout.split()
    assert tracked == ["recordings/.gitignore", "recordings/README.md", f"{RECORDINGS}.dvc"]
    assert versions.project.run("git", "status", "--porcelain").stdout == ""
    assert versions.project.run("dvc", "status").stdout.strip() == "Data and pipelines are up to date."


def test_a_new_version_runs_what_depends_on_it(versions: Versions) -> None:
    later = ["teacher", "student@small", "evaluation", "registration"]
    first = versions.ran["data-1"]
    assert [stage for stage in first if stage != "recipes"] == ["dataset", "features", *later]
    assert first.index("recipes") < first.index("student@small")
    assert versions.ran["data-2"] == ["dataset", *later], "other labels of the same recordings need no new features"
    project = versions.project
    (project.folder / RECORDINGS / "audio/audio-dev" / NAMES["train"][1]).unlink()
    (project.folder / RECORDINGS / "audio/audio-dev" / NAMES["train"][1]).write_bytes(wav(99))
    project.run("dvc", "add", RECORDINGS)
    assert ran(project.run("dvc", "repro", "features").stdout) == ["dataset", "features"]
    assert digest(project) not in versions.digests.values()
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout", "--force")
    assert digest(project) == versions.digests["data-2"]


def test_mlflow_names_the_version(versions: Versions) -> None:
    client = MlflowClient(f"sqlite:///{versions.project.folder / 'mlflow.db'}")
    parents = client.search_runs([client.get_experiment_by_name("iusp").experiment_id], "tags.`iusp.step` = 'pipeline'")
    assert [run.data.tags["iusp.data"] for run in parents] == [versions.digests["data-2"], versions.digests["data-1"]]
    models = client.search_model_versions("name = 'iusp-student'")
    assert {model.tags["iusp.data"] for model in models} == set(versions.digests.values())
    assert {one.tags["iusp.source"] for one in (*models, *(run.data for run in parents))} == {RECORDINGS}
    shown = versions.project.run("iusp", "models").stdout
    assert all(one[:8] in shown for one in versions.digests.values())


def test_versions_are_compared_each_on_its_own_clips_and_both_on_the_same(versions: Versions, tmp_path: Path) -> None:
    project = versions.project
    difference = json.loads(project.run("dvc", "metrics", "diff", "data-1", "data-2", "--json").stdout)
    numbers = difference["reports/evaluation/metrics.json"]["students.small.coarse.micro_auprc"]
    before = tmp_path / "before"
    project.run("dvc", "get", ".", "reports/evaluation/predictions", "--rev", "data-1", "--out", str(before))
    predictions = "reports/evaluation/predictions/small-seed-0.csv", str(before / "small-seed-0.csv")
    compared = json.loads(project.run("iusp", "compare", *predictions, *TRUTH, "--split", "test").stdout)
    assert compared["clips"] == {"compared": 4, "split": 4, "predictions": 4, "reference": 4}
    assert compared["predictions"]["micro_auprc"] == numbers["new"]
    # What the older one says is held against the corrected truth.
    assert compared["reference"]["micro_auprc"] != numbers["old"]
    assert compared["difference"] == compared["predictions"]["micro_auprc"] - compared["reference"]["micro_auprc"]


def test_a_cluster_fetches_the_same_version_from_the_repository(
    versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in versions.stores["bucket"].environment.items():
        monkeypatch.setenv(name, value)
    place = {"url": str(versions.project.folder), "revision": "data-1", "path": RECORDINGS}
    settings = config(".").model_dump(by_alias=True) | {"source": "dvc", "dvc": place}
    summary = ingest(type(config(".")).model_validate(settings), tmp_path / "out")
    assert summary.digest == versions.digests["data-1"]


def test_another_version_of_sonyc_ust_lies_beside_it(versions: Versions, colleague: Project, tmp_path: Path) -> None:
    colleague.run("dvc", "pull", "--remote", "folder")
    clips = {name: wav(number, 2) for number, name in enumerate(name for names in NAMES_V23.values() for name in names)}
    mirror = publish(tmp_path / "mirror", nineteen(clips), ROWS_V23)
    (mirror / "record.json").write_bytes(zenodo.describe(mirror, "v2.3"))
    import_and_pin(colleague, "v2.3", mirror, RECORDINGS_V23)
    new = [stage for stage in versions.ran["data-1"] if stage != "recipes"]
    assert ran(colleague.run("dvc", "repro").stdout) == new, "everything but the recipes depends on the recordings"
    colleague.run("git", "add", ".")
    colleague.run("git", "commit", "--quiet", "--message", "v2.3")
    colleague.run("git", "tag", "data-3")
    tracked = colleague.run("git", "ls-files", "recordings/*.dvc").stdout.split()
    assert tracked == [f"{RECORDINGS}.dvc", f"{RECORDINGS_V23}.dvc"]
    client = MlflowClient(f"sqlite:///{colleague.folder / 'mlflow.db'}")
    assert client.get_model_version_by_alias("iusp-student", "challenger").tags["iusp.source"] == RECORDINGS_V23

    difference = json.loads(colleague.run("dvc", "metrics", "diff", "data-2", "data-3", "--json").stdout)
    numbers = difference["reports/evaluation/metrics.json"]["students.small.coarse.micro_auprc"]
    predictions, before = "reports/evaluation/predictions/small-seed-0.csv", tmp_path / "before"
    colleague.run("dvc", "get", ".", "reports/evaluation/predictions", "--rev", "data-2", "--out", str(before))
    older = before / "small-seed-0.csv"
    compare = ("iusp", "compare", predictions, str(older), "--split", "test", *TRUTH)
    compared = json.loads(colleague.run(*compare).stdout)
    assert compared["clips"] == {"compared": 2, "split": 4, "predictions": 4, "reference": 4}
    assert compared["predictions"]["micro_auprc"] != numbers["new"], "of two clips, not of four"
    assert compared["difference"] == compared["predictions"]["micro_auprc"] - compared["reference"]["micro_auprc"]
    table = pd.read_csv(older)
    table[~table["audio_filename"].isin(NAMES_V23["test"])].to_csv(older, index=False)
    refused = colleague.run(*compare, check=False)
    assert (refused.returncode, refused.stderr) == (
        2,
        f"iusp: {predictions}: shares no clip of split test in data/dataset/annotations.csv with {older}; "
        "compare predictions of the same clips\n",
    )

    colleague.run("git", "checkout", "--quiet", "data-2")
    colleague.run("dvc", "checkout")
    assert digest(colleague) == versions.digests["data-2"]
    assert ran(colleague.run("dvc", "repro").stdout) == []


# Remotes --------------------------------------------------------------------------------------------------------------


REMOTES = pytest.mark.parametrize("remote", ["folder", "bucket"])


def written(project: Project) -> dict[str, dict[str, bytes]]:
    return {name: tree(project.folder / name) for name in (RECORDINGS, *WRITTEN)}


@REMOTES
def test_a_colleague_has_it_all_and_nothing_to_run(versions: Versions, colleague: Project, remote: str) -> None:
    pull, environment = ("dvc", "pull", "--remote", remote), versions.stores[remote].environment
    colleague.run(*pull, **environment)
    assert written(colleague) == written(versions.project)
    assert ran(colleague.run("dvc", "repro").stdout) == []
    colleague.run("git", "checkout", "--quiet", "data-1")
    colleague.run(*pull, **environment)
    assert digest(colleague) == versions.digests["data-1"]
    assert ran(colleague.run("dvc", "repro").stdout) == []
    # The publisher is gone: the same bytes come of the pinned recordings.
    before = tree(colleague.folder / "data/dataset"), tree(colleague.folder / "data/recordings")
    for name in ("dataset", "recordings"):
        shutil.rmtree(colleague.folder / "data" / name)
    colleague.run("iusp", "dataset")
    ignored = {".gitignore"}  # DVC's
    after = tree(colleague.folder / "data/dataset"), tree(colleague.folder / "data/recordings")
    assert after == tuple({name: one[name] for name in one.keys() - ignored} for one in before)


@REMOTES
def test_what_is_damaged_or_missing_in_a_remote_is_told(versions: Versions, colleague: Project, remote: str) -> None:
    store, content = versions.stores[remote], CLIPS[NAMES["train"][0]]
    pull = ("dvc", "pull", "--remote", remote, RECORDINGS)
    md5 = hashlib.md5(content).hexdigest()
    store.put(stored(md5), content[:-1] + bytes([content[-1] ^ 1]))
    damaged = colleague.run(*pull, check=False, **store.environment)
    assert damaged.returncode != 0
    assert f"Checkout failed for following targets:\n{RECORDINGS}" in damaged.stderr
    assert not (colleague.folder / RECORDINGS).exists()

    store.put(stored(md5), None)
    missing = colleague.run(*pull, check=False, **store.environment)
    assert missing.returncode != 0
    assert f"failed to transfer '{md5}'" in missing.stderr
    assert not (colleague.folder / RECORDINGS).exists()

    # DVC takes a folder's content for pushed if the folder's own object is there.
    pointer = yaml.safe_load((versions.project.folder / f"{RECORDINGS}.dvc").read_text())
    store.put(stored(pointer["outs"][0]["md5"]), None)
    versions.project.run("dvc", "push", "--remote", remote, RECORDINGS, **store.environment)
    colleague.run(*pull, **store.environment)
    assert tree(colleague.folder / RECORDINGS) == tree(versions.project.folder / RECORDINGS)


def stored(md5: str) -> str:
    return f"files/md5/{md5[:2]}/{md5[2:]}"
