"""Servers on loopback, each in a process of its own, and the environment in which tests start processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.forked import end_with_parent

START_SECONDS = 900  # a busy machine must not fail a test
END_SECONDS = 60


def environment() -> dict[str, str]:
    """Return the environment of a user who has activated the virtual environment and set nothing else."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "IUSP_", "DVC_"))}
    author = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "test"), ("EMAIL", "test@example.org"))
    }
    return clean | author | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def heed_interrupts() -> None:
    """Accept Ctrl-C, which a shell's background processes and their children ignore; for `preexec_fn`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def started(
    command: Sequence[str | Path], port: int, folder: Path, env: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a server, wait until its port answers, and end it afterwards; `folder` keeps its log."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, preexec_fn=end_with_parent)
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                ended = process.poll() is not None or time.monotonic() > end
                assert not ended, (folder / "log").read_text()[-3000:]
                time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run MLflow's server on SQLite; yield its address."""
    port = free_port()
    # One worker: on a busy machine uvicorn kills workers that start late. Its threads are enough for race conditions.
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "kept")]
    with started(command, port, folder, environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}):
        yield f"http://127.0.0.1:{port}"
