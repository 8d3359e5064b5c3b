"""Fixtures that several test files share."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
import numpy as np
import pytest
from filelock import FileLock

from tests.support import s3_servers
from tests.support.project import STEPS, Project

# No deadline: a busy machine must not fail a test. The same examples in every run: a failure is one for everybody.
hypothesis.settings.register_profile("iusp", deadline=None, derandomize=True)
hypothesis.settings.load_profile("iusp")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Remove the temporary folders of a run when it ends, failed or interrupted, unless `--basetemp` names a folder."""
    if "PYTEST_XDIST_WORKER" in os.environ or config.option.basetemp:
        return
    folder = TemporaryDirectory(prefix="iusp-tests-", ignore_cleanup_errors=True)
    config.option.basetemp = folder.name
    config.add_cleanup(folder.cleanup)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose steps have run without DVC. Read it only: all processes of pytest share it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed"
    shared.mkdir(exist_ok=True)
    with FileLock(shared / "lock"):
        project = Project(shared / "project")
        if not (shared / "done").exists():
            for step in STEPS:
                project.run("iusp", *step)
            (shared / "done").touch()
    return project


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The addresses of an S3 server of each kind."""
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(s3_servers.serving(kind, tmp_path_factory.mktemp(kind)))
            for kind in s3_servers.KINDS
        }


@pytest.fixture(params=s3_servers.KINDS)
def server(request: pytest.FixtureRequest, servers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an S3 server, for which boto3 is configured."""
    s3_servers.use(monkeypatch, servers[request.param])
    return servers[request.param]


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3_servers.Proxy]:
    """A proxy in front of that server, for which boto3 is configured instead."""
    with s3_servers.proxying(server) as proxy:
        s3_servers.use(monkeypatch, proxy.address)
        monkeypatch.setattr("iusp.io.s3.PAUSE_SECONDS", 0.01)
        yield proxy


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[[str], Project]:
    return lambda name: Project(tmp_path / name)


@pytest.fixture(scope="session")
def calibration() -> np.ndarray:
    """Log-mel spectrograms to calibrate int8 with."""
    from tests.support.exported import calibrating  # torch and onnx take seconds to import

    return calibrating()


@pytest.fixture(scope="session")
def exported(calibration: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of a student; only to be read."""
    from tests.support.exported import write_exported

    folder = tmp_path_factory.mktemp("device")
    write_exported(folder, calibration)
    return folder
