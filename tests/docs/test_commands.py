"""The commands and the code of README.md and the guides, run in the order in which they stand."""

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import s3_servers
from tests.support.project import ROOT, Project

PAGES = [
    "README.md",
    "docs/index.md",
    "docs/guides/researcher.md",
    "docs/guides/ml-engineer.md",
    "docs/guides/release-manager.md",
    "docs/guides/device-engineer.md",
]
# The beginning of a command that is not run here, and the reason.
NOT_RUN = {
    "make run": "installs packages; `dvc repro` has run instead",
    "source .venv/bin/activate": "the tests' environment is active",
    "python -m pipelines run": "tests/pipelines runs it",
    "make images": "needs Docker; `make test-containers` runs it",
    "python -m pipelines submit": "needs a cluster; tests/pipelines/test_submit.py runs it on a stand-in",
    "export MLFLOW_TRACKING_URI=https://": "needs a server",
}


@dataclass
class Block:
    """A fenced block of a page.

    Attributes:
        language: `bash` or `python`; others are not run.
        title: file that the reader writes the block to; empty for a block that is run.
        text: content, without the indentation of the fence.
    """

    language: str
    title: str
    text: str


def blocks(page: str) -> list[Block]:
    pattern = r'^( *)```(\w+)(?: title="([^"\n]*)")?\n(.*?)^ *```$'
    found = re.findall(pattern, (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [Block(language, title, dedent(indent, text)) for indent, language, title, text in found]


def dedent(indent: str, text: str) -> str:
    return "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))


def commands(text: str) -> list[str]:
    """The commands of a block that are run, with continued lines joined."""
    lines = (re.sub(r"\s+#.*", "", line) for line in re.sub(r"\\\n\s*", "", text).splitlines())
    return [line for line in lines if line and not line.startswith(tuple(NOT_RUN))]


def follow(project: Project, block: Block) -> None:
    """Do what a reader of the block does."""
    if block.title:
        path = project.folder / block.title
        head = " = MappingProxyType(\n    {\n"  # what goes into an existing file is a row of its table
        path.write_text(path.read_text().replace(head, head + block.text) if path.exists() else block.text)
    elif block.language == "python":
        project.run(sys.executable, "-c", block.text)
    elif block.language == "bash":
        for command in commands(block.text):
            drift = command.startswith("iusp monitor")  # which has the exit status 1
            done = project.run("bash", "-c", command, check=not drift)
            assert done.returncode in (0, int(drift)), done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A small project after `dvc repro`, with the students that the pages name and recordings of its own."""
    project = Project(tmp_path / "project")
    params = project.params()
    params["students"] = {
        name: {"architecture": "plain", "parameters": 2500, "method": method, "seeds": [0]}
        for name, method in (("small", "iusp"), ("small_kd", "kd"), ("small_labels", "labels"))
    }
    # Networks this small are not good, and this machine may be slow.
    params["registration"]["gate"] |= {
        "floors": {"micro_auprc": 0, "macro_auprc": 0, "classes": {}},
        "budgets": {"parameters": 24000, "macs": 8000000, "bytes": {}, "latency_ms": {}},
        "parity": {"max_difference": 1e-4, "auprc_loss": 1},
    }
    project.write_params(params)
    project.commit()
    project.run("dvc", "repro")
    own = project.folder / "recordings" / "street"
    shutil.copytree(project.folder / "data" / "recordings", own / "audio")
    shutil.copy(project.folder / "data" / "dataset" / "annotations.csv", own)
    shutil.copy(project.folder / "data" / "dataset" / "taxonomy.yaml", own / "dcase-ust-taxonomy.yaml")
    return project


@pytest.mark.slow
def test_the_commands_of_readme_and_guides(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with s3_servers.serving("moto", store) as endpoint:
        s3_servers.use(monkeypatch, endpoint)
        s3_servers.client(endpoint).create_bucket(Bucket="models")
        for page in PAGES:
            for block in blocks(page):
                follow(project, block)


def test_every_command_that_is_not_run_is_in_a_page() -> None:
    text = "\n".join((ROOT / page).read_text() for page in PAGES)
    assert [command for command in NOT_RUN if f"\n{command}" not in text] == []


def test_the_tests_that_security_names_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 30
    assert [
        f"{path}::{name}" for path, name in named if f"def {name}(" not in (ROOT / "tests" / path).read_text()
    ] == []
