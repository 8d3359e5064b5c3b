"""A run of tests that is interrupted leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.local_servers import environment, heed_interrupts
from tests.support.project import ROOT

pytestmark = pytest.mark.integration
# Two tests, for two of xdist's workers; each starts a server and a process to fork from.
TESTS = """
import os, sys, time
from pathlib import Path
import pytest
from tests.support.forked import _server
from tests.support.local_servers import free_port, started

@pytest.mark.parametrize("number", range(2))
def test_long(number, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    with started(command, port, tmp_path):
        _server()
        Path(os.environ["STARTED"], str(number)).touch()
        time.sleep(600)
"""
SECONDS = 300  # a busy machine must not fail a test


def wait(done: "subprocess.Popen[bytes]", names: Path, count: int) -> None:
    deadline = time.monotonic() + SECONDS
    while len(list(names.iterdir())) < count:
        assert done.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ctrl_c_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    for name in ("names", "temporary"):
        (tmp_path / name).mkdir()
    (tmp_path / "test_long.py").write_text(TESTS)
    clean = {name: value for name, value in environment().items() if not name.startswith("PYTEST_")}
    variables = {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "temporary"), "STARTED": str(tmp_path / "names")}
    command = [sys.executable, "-m", "pytest", "-n", "2", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    run = subprocess.Popen([*command, "test_long.py"], cwd=tmp_path, env=clean | variables, preexec_fn=heed_interrupts)
    wait(run, tmp_path / "names", 2)
    started = psutil.Process(run.pid).children(recursive=True)
    assert len(started) >= 6, "two workers, and what each has started"
    # To pytest alone: a terminal's Ctrl-C reaches the others, too, and is no harder.
    os.kill(run.pid, signal.SIGINT)
    assert run.wait(SECONDS) == pytest.ExitCode.INTERRUPTED
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive
    assert not list((tmp_path / "temporary").iterdir())
