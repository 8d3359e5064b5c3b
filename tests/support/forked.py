"""Run `iusp` in a fork of a process that has imported the heavy packages: seconds less for each command.

The process has imported nothing of `iusp` itself. `run` starts it from this file. What a command's imports write to
stderr is lost; tests/cli/test_main.py starts each step as people do.
"""

import atexit
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

HEAVY = (
    "torch",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "pandas",
    "pyarrow",
    "scipy.signal",
    "matplotlib.figure",
    "rich.console",
)


def end_with_parent() -> None:
    """Have Linux end this process when the one that started it has ended, for whatever reason; also a `preexec_fn`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG


@cache
def _server() -> subprocess.Popen[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "IUSP_", "DVC_"))}
    clean["MLFLOW_DISABLE_TELEMETRY"] = "true"  # as iusp does, which is not here yet
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean
    )
    assert server.stdin
    atexit.register(server.stdin.close)  # which ends it
    return server


def run(command: tuple[str, ...], folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `iusp …` in a folder, by the `iusp` that is there."""
    server = _server()
    assert server.stdin
    assert server.stdout
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name, stream) for stream in ("stdout", "stderr")]
        request = {"command": command, "folder": str(folder), "env": dict(env), "files": list(map(str, files))}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(command, status, *(file.read_text() for file in files))


def serve() -> dict[str, Any]:
    """Fork for each request, which the fork returns, and answer with its exit status."""
    for line in sys.stdin:
        if child := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        else:
            request: dict[str, Any] = json.loads(line)
            return request
    sys.exit()


def become(request: dict[str, Any]) -> None:
    """Run the command in this process, as one that was started for it."""
    end_with_parent()
    for number, path in enumerate((os.devnull, *request["files"])):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    sys.argv = request["command"]
    status = 1
    try:
        import_module("iusp.cli.main").main()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # What was imported before the fork would wait for its threads, which are not here.
    os._exit(status)


if __name__ == "__main__":
    end_with_parent()
    for module in HEAVY:
        import_module(module)
    assert "iusp" not in sys.modules
    become(serve())
