"""Serve this folder's MLflow database on loopback: `python -m scripts.mlflow_server PORT`.

MLflow's start page shows its tools for language models, so the address of the training runs is printed.
"""

import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from iusp.config.params import load

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
    """Print the address, and become the server."""
    experiment = load(Path("params.yaml")).registration.experiment
    print(f"Training runs: {training_view(DATABASE, experiment, port)}", flush=True)  # noqa: T201 (its output)
    # The job queue's workers serve only MLflow's tools for language models.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execvp("mlflow", ["mlflow", "server", *arguments, "--backend-store-uri", f"sqlite:///{DATABASE}"])  # noqa: S606, S607


if __name__ == "__main__":
    main(int(sys.argv[1]))
