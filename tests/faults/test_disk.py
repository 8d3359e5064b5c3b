"""Disks that are full or read-only: one line, exit status 2, nothing lost, and the step goes on when that is mended.

The disks are file systems in memory of a size, mounted by root, which `make faults` runs as.
"""

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import zenodo
from tests.support.project import Project, Tried, merged
from tests.support.sampling import often
from tests.support.sonyc_ust import CLIPS, DEV, EVAL, NAMES, ROWS, publish
from tests.support.workspace import COMMANDS, OUTPUTS, contents, copied, registered

SIZES = often(2, 1)
PAGE_BYTES = 4096  # of which a file takes a multiple


@contextmanager
def disk(folder: Path) -> Iterator[Callable[[str], None]]:
    """Mount a file system at a folder, with what the folder holds; yield what changes the mount's options."""
    aside = folder.with_name(f"{folder.name}-aside")
    folder.mkdir(exist_ok=True)
    shutil.copytree(folder, aside)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", folder], check=True)
    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True)

        def remount(options: str) -> None:
            subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)

        yield remount
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        shutil.rmtree(aside)


def used(folder: Path) -> int:
    return sum(PAGE_BYTES * -(-path.stat().st_size // PAGE_BYTES) for path in [folder, *folder.rglob("*")])


def refusal(project: Project, *command: str, **extra: str) -> str:
    """Run a command that must be refused in one line, and return that."""
    done = project.run(*command, check=False, **extra)
    assert done.returncode == 2, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("iusp: ")]
    lines = [line for line in lines if "counts as 0 in the macro average" not in line]  # a warning about small data
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("step", [step for step in COMMANDS if step != "registration"])
def test_a_step_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    undisturbed: tuple[Project, dict[str, float]], tmp_path: Path, step: str, tried: Tried
) -> None:
    whole, _ = undisturbed
    project, chance = copied(whole, tmp_path / "project", step), random.Random(f"sizes for {step}")
    top = project.folder / Path(OUTPUTS[step][0]).parts[0]
    needed = sum(used(whole.folder / output) for output in OUTPUTS[step])
    with disk(top) as remount:
        before, there = contents(project.folder), used(top)
        for share in sorted(chance.uniform(0, 0.9) for _ in range(SIZES)):
            remount(f"size={there + int(share * needed)}")
            assert "No space left on device; free some space and run again" in refusal(project, *COMMANDS[step])
            assert {name: value for name, value in contents(project.folder).items() if ".work-" not in name} == before
        remount("size=1g")
        project.run(*COMMANDS[step])
        assert contents(project.folder, *OUTPUTS[step]) == contents(whole.folder, *OUTPUTS[step])
    tried(
        f"the disk fills up while `{' '.join(COMMANDS[step])}` runs",
        SIZES,
        "the step stops with a one-line error; when space is free again, it writes the same bytes",
    )


def test_a_disk_that_gets_full_amid_sonyc_ust_is_one_line_and_it_goes_on_when_there_is_room(
    tmp_path: Path, tried: Tried
) -> None:
    """As another program fills it: what would be too little from the start is told before anything is fetched."""
    archives = {DEV: {name: CLIPS[name] for split in ("train", "validate") for name in NAMES[split]}}
    archives |= {EVAL: {name: CLIPS[name] for name in NAMES["test"]}}
    mirror = publish(tmp_path / "mirror", archives, ROWS)
    (mirror / "record.json").write_bytes(zenodo.describe(mirror, 2019))

    def project_of(name: str) -> Project:
        project = Project(tmp_path / name)
        changes = {"source": "sonyc-ust", "sonyc_ust": {"mirror": str(mirror)}}
        project.write_params(merged(project.params(), {"dataset": changes}))
        module = project.folder / "iusp/sources/sonyc_ust.py"
        module.write_text(module.read_text().replace("if needed > free:", "if False:"))
        return project

    whole, project = project_of("whole"), project_of("project")
    whole.run("iusp", "dataset")
    there, packed = used(project.folder / "recordings"), used(mirror)
    with disk(project.folder / "recordings") as remount:
        for phase, size in (("archives/", packed // 2), ("audio/", packed)):
            remount(f"size={there + size}")
            assert "No space left on device; free some space and run again" in refusal(project, "iusp", "dataset")
            left = [str(path) for path in (project.folder / "recordings").rglob("*.partial")]
            assert left
            assert all(phase in path for path in left)
        remount("size=1g")
        project.run("iusp", "dataset")
        assert contents(project.folder, "data") == contents(whole.folder, "data")
        assert contents(project.folder, "recordings") == contents(whole.folder, "recordings")
    tried(
        "the disk fills up while `iusp dataset` downloads SONYC-UST, and while it unpacks SONYC-UST",
        2,
        "the step stops with a one-line error; when space is free again, it writes the same bytes",
    )


@pytest.mark.parametrize("kept", ["database", "artifacts"])
def test_mlflow_on_a_full_disk_is_one_line_and_nothing_is_registered_twice(
    undisturbed: tuple[Project, dict[str, float]], tmp_path: Path, kept: str, tried: Tried
) -> None:
    whole, _ = undisturbed
    project, chance = copied(whole, tmp_path / "project", "registration"), random.Random(f"sizes for {kept}")
    place, needed = {
        "database": (project.folder / "kept", used(whole.folder / "mlflow.db")),
        "artifacts": (project.folder / "mlruns", used(whole.folder / "mlruns")),
    }[kept]
    uri = f"sqlite:///{place if kept == 'database' else project.folder}/mlflow.db"
    with disk(place) as remount:
        for share in sorted(chance.uniform(0, 0.9) for _ in range(SIZES)):
            remount(f"size={PAGE_BYTES + int(share * needed)}")
            line = refusal(project, *COMMANDS["registration"], MLFLOW_TRACKING_URI=uri)
            assert "disk is full" in line or "No space left on device" in line
            assert not (project.folder / "reports/registration.json").exists()
        remount("size=1g")
        project.run(*COMMANDS["registration"], MLFLOW_TRACKING_URI=uri)
        assert registered(uri) == registered(f"sqlite:///{whole.folder}/mlflow.db")
    tried(
        f"the disk of MLflow's {kept} fills up while `iusp registration` runs",
        SIZES,
        "the step stops with a one-line error; when space is free again, it registers one version",
    )


@pytest.mark.parametrize("step", COMMANDS)
def test_a_step_on_a_read_only_disk_says_so(
    undisturbed: tuple[Project, dict[str, float]], tmp_path: Path, step: str, tried: Tried
) -> None:
    whole, _ = undisturbed
    project = copied(whole, tmp_path / "project", "registration")
    top = project.folder / Path(OUTPUTS[step][0]).parts[0]
    with disk(top) as remount:
        before = contents(project.folder)
        remount("ro")
        assert "Read-only file system; give this user permission to write there" in refusal(project, *COMMANDS[step])
        assert contents(project.folder) == before
    tried(
        f"`{' '.join(COMMANDS[step])}` runs on a read-only disk",
        1,
        "the step stops with a one-line error; existing files do not change",
    )
