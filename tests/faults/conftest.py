"""The fault suite's table: what was tried, how often, the outcome, and how much was lost."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.support.project import Project, Tried
from tests.support.sampling import FULL
from tests.support.workspace import existing, run_undisturbed

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
HEAD = "| fault | times | outcome | lost |\n|---|--:|---|--:|\n"
START, END = "<!-- table -->\n", "<!-- /table -->"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-page", action="store_true", help="write the table into docs/faults.md; needs FULL=1")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--write-page", False) and not FULL:
        raise pytest.UsageError("--write-page needs FULL=1: the page tells of everything, not of a sample")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.faults)


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Tried:
    """A function that adds a row to the table. It reports; the test itself asserts how much may be lost."""

    def line(what: str, times: int, outcome: str, lost: int = 0) -> None:
        # xdist's workers send properties of the report to the main process, and nothing else.
        record_property("fault", [what, times, outcome, lost])

    return line


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    stats = terminalreporter.stats
    reports = [one for stat in ("passed", "failed") for one in stats.get(stat, [])]
    lines = sorted(
        (one.nodeid, number, value)
        for one in reports
        for number, (name, value) in enumerate(one.user_properties)
        if name == "fault" and one.when == "call"
    )
    table = HEAD + "".join(
        f"| {what} | {times:,} | {outcome} | {lost:,} |\n" for _, _, (what, times, outcome, lost) in lines
    )
    if lines:
        terminalreporter.write_line(f"\n{table}")
    if config.getoption("--write-page", False):
        every, passed = collected(config), {one.nodeid for one in stats.get("passed", []) if one.when == "call"}
        if every - passed or stats.get("failed") or stats.get("error"):
            missing = f"{len(every - passed)} of {len(every)} tests of tests/faults did not pass or did not run"
            terminalreporter.write_line(f"docs/{PAGE.name} is left as it is: {missing}")
        else:
            before, _, rest = PAGE.read_text().partition(START)
            PAGE.write_text(f"{before}{START}{table}{END}{rest.partition(END)[2]}")


def collected(config: pytest.Config) -> set[str]:
    """Return all tests of this folder, selected or not; under xdist, only another process collects."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", Path(__file__).parent]
    done = subprocess.run(command, cwd=config.rootpath, capture_output=True, text=True, check=True)
    return {line for line in done.stdout.splitlines() if line.startswith("tests/faults/") and "::" in line}


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict[str, float]]:
    """The pipeline, run undisturbed once for all of xdist's workers, and the seconds that each step took."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with FileLock(folder / "undisturbed.lock"):
        if not (folder / "seconds.json").exists():
            (folder / "seconds.json").write_text(json.dumps(run_undisturbed(folder / "undisturbed")))
    return existing(folder / "undisturbed"), json.loads((folder / "seconds.json").read_text())
