"""Serve this folder's MLflow database on loopback: `python -m scripts.mlflow_server PORT`.

MLflow's start page shows its tools for language models, so the address of the training runs is printed.
"""

import os
import socket
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from iusp.cli.console import readable_failures
from iusp.config.params import RegistrySettings, load_sections
from iusp.errors import InputError

DATABASE = Path("mlflow.db")


def training_view(database: Path, experiment: str, port: int) -> str:
    """Return the address of an experiment's training runs, or of MLflow's start page before the first run.

    Args:
        database: file of MLflow's SQLite database.
        experiment: name of the experiment.
        port: port of the server.
    """
    page = f"http://127.0.0.1:{port}"
    if not database.exists():
        return page
    with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        row = connection.execute("SELECT experiment_id FROM experiments WHERE name = ?", (experiment,)).fetchone()
    return f"{page}/#/experiments/{row[0]}/runs?workflowType=machine_learning" if row else page


def main(port: int) -> None:
    """Print the address, and become the server.

    Raises:
        InputError: the port cannot be used.
    """
    experiment = load_sections(Path("params.yaml"), RegistrySettings).registration.experiment
    _check_port(port)
    print(f"Training runs: {training_view(DATABASE, experiment, port)}", flush=True)  # noqa: T201 (its output)
    # The job queue's workers serve only MLflow's tools for language models.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execvp("mlflow", ["mlflow", "server", *arguments, "--backend-store-uri", f"sqlite:///{DATABASE}"])  # noqa: S606, S607


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"port {port}: {reason}; stop the program there, or set another one (PORT=)") from None


if __name__ == "__main__":
    with readable_failures():
        if not sys.argv[1].isdecimal():
            raise InputError(f"PORT={sys.argv[1]}: not a number; set a port such as 5000")
        main(int(sys.argv[1]))
