"""Steps, and the whole pipeline, killed with all their processes at random moments, and run again."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from iusp.io.files import atomic, work_folder
from tests.support.project import Project, Tried
from tests.support.sampling import often
from tests.support.workspace import (
    COMMANDS,
    OUTPUTS,
    await_work,
    contents,
    copied,
    kill,
    new_project,
    registered,
    start,
)

ROUNDS, KILLS = often(2, 1), 3


@pytest.mark.parametrize("step", COMMANDS)
def test_a_step_killed_at_random_ends_with_the_same_bytes(
    undisturbed: tuple[Project, dict[str, float]], tmp_path: Path, step: str, tried: Tried
) -> None:
    """In each round the step is killed again and again, each time going on from where it was; then it may end."""
    whole, seconds = undisturbed
    chance = random.Random(f"kills of {step}")
    killed = 0
    for number in range(ROUNDS):
        project, kills = copied(whole, tmp_path / f"{number}", step), 0
        while kills < KILLS:
            process = start(project, *COMMANDS[step])
            if kills:  # the first kill of a round may come while it starts
                await_work(process, step)
            time.sleep(chance.uniform(0, seconds[step]))
            if kill(process):
                kills += 1
                is_never_half(project, whole, step)
            else:  # it was faster than it had been undisturbed
                assert process.returncode == 0
                project = copied(whole, tmp_path / f"{number}", step)
        killed += kills
        project.run(*COMMANDS[step])
        assert contents(project.folder, *OUTPUTS[step]) == contents(whole.folder, *OUTPUTS[step])
        assert not list(project.folder.rglob(".*.work-*"))
        if step == "registration":
            assert database(project) == database(whole)
    tried(
        f"`{' '.join(COMMANDS[step])}` and its workers are killed (`kill -9`), then the step runs again",
        killed,
        "the outputs have the same bytes as without the kill",
    )


def is_never_half(project: Project, whole: Project, step: str) -> None:
    """Assert that what a killed step leaves under its outputs' names is whole."""
    for output in OUTPUTS[step]:
        if (project.folder / output).exists():
            assert contents(project.folder, output) == contents(whole.folder, output)


def database(project: Project) -> dict[str, object]:
    return registered(f"sqlite:///{project.folder}/mlflow.db")


def test_dvc_repro_killed_in_every_stage_ends_with_the_same_bytes(
    undisturbed: tuple[Project, dict[str, float]], tmp_path: Path, tried: Tried
) -> None:
    whole, seconds = undisturbed
    project, chance, killed = new_project(tmp_path / "project"), random.Random("kills of dvc repro"), 0
    for step in COMMANDS:
        process = start(project, "dvc", "repro")
        await_work(process, step)
        time.sleep(chance.uniform(0, seconds[step]))
        killed += kill(process)
        assert process.returncode in (-signal.SIGKILL, 0)
    assert killed >= len(COMMANDS) - 1  # in the last stage it may have been faster than it had been undisturbed
    project.run("dvc", "repro")
    assert contents(project.folder) == contents(whole.folder)
    assert database(project) == database(whole)
    assert "Running stage" not in project.run("dvc", "repro").stdout
    assert not list(project.folder.rglob(".*.work-*"))
    what = "`dvc repro` and all its child processes are killed at a random moment of each stage, then it runs again"
    tried(what, killed, "the outputs have the same bytes as without the kill")


OLD, NEW = {"one": "old", "two": "old"}, {"one": "new", "three": "new"}


def test_an_output_is_replaced_at_once_or_not_at_all(tmp_path: Path, tried: Tried) -> None:
    """Killed before the first operation on files, before the second, and so on."""
    killed = 0
    while True:
        output = tmp_path / f"{killed}" / "output"
        output.mkdir(parents=True)
        for name, text in OLD.items():
            (output / name).write_text(text)
        child = os.fork()
        if not child:
            sys.addaudithook(deadly(killed))
            replace(output)
            os._exit(0)
        if not os.waitpid(child, 0)[1]:
            break
        killed += 1
        assert not output.exists() or held(output) in (OLD, NEW)
        replace(output)
        assert held(output) == NEW
        assert list(output.parent.iterdir()) == [output]
    assert killed > 10
    tried(
        "a step is killed while it replaces its output, before each file operation in turn",
        killed,
        "the output is the old one, the new one or absent",
    )


def deadly(number: int) -> Callable[[str, object], None]:
    seen = 0

    def hook(event: str, _: object) -> None:
        nonlocal seen
        if event == "open" or event.startswith(("os.", "shutil.")):
            seen += 1
            if seen == number + 1:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def replace(output: Path) -> None:
    with work_folder(output, "key") as folder:
        for name, text in NEW.items():
            with atomic(folder / name) as temporary:
                temporary.write_text(text)


def held(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}
