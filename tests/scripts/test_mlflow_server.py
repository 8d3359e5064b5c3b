"""`make mlflow` points to the training runs of the experiment."""

import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from scripts.mlflow_server import training_view
from tests.support.project import ROOT

pytestmark = pytest.mark.integration


def test_the_address_is_that_of_the_experiments_training_runs(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT)")
        connection.execute("INSERT INTO experiments VALUES (0, 'Default'), (7, 'iusp')")
    address = "http://127.0.0.1:5001/#/experiments/7/runs?workflowType=machine_learning"
    assert training_view(database, "iusp", 5001) == address


def test_before_the_first_run_it_is_the_start_page_and_no_database_is_made(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    assert training_view(database, "iusp", 5000) == "http://127.0.0.1:5000"
    assert not database.exists()


def test_a_port_that_cannot_be_used_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for given in (port, "99999", "http"):
            command = [sys.executable, "-m", "scripts.mlflow_server", given]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 2
            (line,) = done.stderr.splitlines()
            assert given in line
