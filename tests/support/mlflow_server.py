"""MLflow servers that can be killed and restarted at once.

`mlflow server` takes seconds to import what it needs. One process does that once; what it forks is what `mlflow server`
starts: uvicorn with MLflow's application, on sqlite, on loopback.

    python -m tests.support.mlflow_server   a line on stdin (port, folder) forks a server and prints its process id
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.local_servers import START_SECONDS, free_port


class Server:
    """A server on a fixed port, which keeps `mlflow.db` and `artifacts/` in a folder."""

    def __init__(self, forks: "subprocess.Popen[str]", folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self._forks, self._port, self._process = folder, forks, free_port(), 0
        self.address = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        assert not self._process
        assert self._forks.stdin
        assert self._forks.stdout
        print(self._port, self.folder, file=self._forks.stdin, flush=True)
        self._process = int(self._forks.stdout.readline())
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.02)

    def kill(self) -> None:
        """Kill it, if it is running."""
        if self._process:
            os.kill(self._process, signal.SIGKILL)
            self._process = 0


@contextmanager
def forking() -> Iterator["subprocess.Popen[str]"]:
    """Start the process from which servers are forked."""
    path = os.pathsep.join(sys.path)
    # No setting of the user or of a test reaches a server.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.mlflow_server"],
        env=clean | {"PYTHONPATH": path, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        # The process ends when its input is closed.


def _serve(port: int, folder: Path) -> None:
    import uvicorn
    from mlflow.server.constants import ARTIFACTS_DESTINATION_ENV_VAR, BACKEND_STORE_URI_ENV_VAR
    from mlflow.server.constants import SERVE_ARTIFACTS_ENV_VAR as SERVE
    from mlflow.server.fastapi_app import app

    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ |= {
        BACKEND_STORE_URI_ENV_VAR: f"sqlite:///{folder}/mlflow.db",
        ARTIFACTS_DESTINATION_ENV_VAR: str(folder / "artifacts"),
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        SERVE: "true",
    }
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def main() -> None:
    """Fork servers until the input ends; then end the servers."""
    import importlib

    for name in ("uvicorn", "mlflow.server.fastapi_app"):
        importlib.import_module(name)
    for kind in ("tracking", "model_registry"):
        importlib.import_module(f"mlflow.store.{kind}.sqlalchemy_store")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # killed servers leave no zombie
    running = []
    for line in sys.stdin:
        port, folder = line.split(maxsplit=1)
        process = os.fork()
        if not process:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _serve(int(port), Path(folder.strip()))
            os._exit(0)
        running.append(process)
        print(process, flush=True)
    for process in running:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
